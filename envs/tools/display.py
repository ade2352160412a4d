"""Bytes from a sandbox as text that is safe and short enough to show: no control sequence, no flood."""

import re

_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement
    r"|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC and other strings: titles, links
    r"|[ -/]*[0-~])"  # character sets and the rest
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def terminal_text(data: bytes) -> str:
    """Output of a command: decoded with replacement, terminal sequences removed, carriage returns as newlines."""
    text = _ESCAPE.sub("", data.decode(errors="replace"))
    return visible(text.replace("\r\n", "\n").replace("\r", "\n"))


def visible(text: str) -> str:
    """Control characters (tab and newline excepted) and undecodable bytes written as `\\x1b`."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", text)


def clip(text: str, max_lines: int, max_chars: int, note: str = "[... {} left out ...]") -> str:
    """The first and last halves of text that has too many lines or characters, with a note between them."""
    lines = text.split("\n")
    closed = lines[-1] == ""
    if len(lines) - closed > max_lines:
        half = max_lines // 2
        lines = lines[: len(lines) - closed]
        text = "\n".join([*lines[:half], note.format(f"{len(lines) - 2 * half} lines"), *lines[-half:]])
    if len(text) > max_chars:
        half = max_chars // 2
        left_out = len(text) - 2 * half
        text = f"{text[:half]}\n{note.format(f'{left_out} characters')}\n{text[-half:]}"
    return text
