"""The file editor: view, create, str_replace and insert, byte-exact, through a sandbox's own reads and writes.

What an edit does not name stays as it was, byte for byte: tabs, CRLF, a missing final newline, bytes that are not
UTF-8. A file whose lines all end in CRLF is edited as the model sees it: newlines in the arguments become CRLF. Nothing
passes through a shell except the path of a folder that is listed, quoted.
"""

import errno
import posixpath
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandboxrl.envs.sandbox.protocol import WORKDIR, FileRefused, Sandbox
from sandboxrl.envs.tools.display import visible
from sandboxrl.envs.tools.tool import Tool, ToolRefused

COMMANDS = ("view", "create", "str_replace", "insert")
NEEDS = {"view": (), "create": ("file_text",), "str_replace": ("old_str",), "insert": ("insert_line", "new_str")}

MAX_FILE_BYTES = 16 << 20
MAX_LINES, MAX_VIEW, MAX_LOOK = 100_000, 1 << 20, 1 << 21
"""Lines and characters that are looked at for one answer: meanwhile all other trajectories of a process wait."""
MAX_ENTRIES = 200
CONTEXT_LINES = 4


@dataclass(frozen=True)
class Wording:
    """What frames the text of a file. The defaults are ours."""

    viewed: str = "{path}, lines {first} to {last} of {total}:"
    created: str = "Created {path} ({size} bytes)."
    edited: str = "Edited {path}. Lines {first} to {last} are now:"
    folder: str = "{path}, two levels, without hidden files:"
    clipped: str = "[... {left_out} more characters; give a view_range, or search with grep -n ...]"
    review: str = ""
    echo: bool = False
    """Show a created file."""
    snippets: bool = True
    """Show the lines around an edit."""
    max_chars: int = 10_000


PARAMETERS: dict[str, dict[str, Any]] = {
    "command": {"type": "string", "enum": list(COMMANDS), "description": "What to do."},
    "path": {"type": "string", "description": "File or directory, for example `/testbed/script.py`."},
    "file_text": {"type": "string", "description": "For create: the whole content of the file."},
    "old_str": {"type": "string", "description": "For str_replace: the text to replace, exactly as in the file."},
    "new_str": {"type": "string", "description": "For str_replace: the new text. For insert: the lines to insert."},
    "insert_line": {"type": "integer", "description": "For insert: the line to insert after; 0 is the beginning."},
    "view_range": {
        "type": "array",
        "items": {"type": "integer"},
        "description": "For view: the first and the last line to show, counted from 1; -1 is the end.",
    },
}


def editor_tool(name: str, wording: Wording, heading: str = "") -> Tool:
    async def run(sandbox: Sandbox, arguments: Mapping[str, Any], timeout_s: float) -> str:
        return await edit(arguments, sandbox, timeout_s, wording)

    description = (
        "View a text file (with line numbers) or a directory, create a file, replace a piece of text that occurs "
        "exactly once, or insert lines."
    )
    return Tool(name, run, description, PARAMETERS, required=("command", "path"), heading=heading, bounded=True)


async def edit(arguments: Mapping[str, Any], sandbox: Sandbox, timeout_s: float, wording: Wording) -> str:
    """Carry out one editor call whose arguments have the right types. Raises ToolRefused, SandboxDied."""
    command = arguments["command"]
    for name in NEEDS[command]:
        if name not in arguments:
            raise ToolRefused(f"{command} needs the argument {name!r}")
    if not arguments["path"] or "\0" in arguments["path"]:
        raise ToolRefused("path must be a file name, relative to /testbed or absolute")
    path = "/" + posixpath.normpath(posixpath.join(WORKDIR, arguments["path"])).lstrip("/")
    try:
        if command == "view":
            return await _view(path, arguments.get("view_range"), sandbox, timeout_s, wording)
        if command == "create":
            return await _create(path, arguments["file_text"], sandbox, wording)
        if command == "str_replace":
            return await _replace(path, arguments["old_str"], arguments.get("new_str", ""), sandbox, wording)
        return await _insert(path, arguments["insert_line"], arguments["new_str"], sandbox, wording)
    except FileRefused as refused:
        raise ToolRefused(_reason(path, refused)) from None


async def _view(path: str, view_range: list[int] | None, sandbox: Sandbox, timeout_s: float, wording: Wording) -> str:
    try:
        data = await sandbox.read(path, MAX_FILE_BYTES)
    except FileRefused as refused:
        if refused.errno not in (errno.EISDIR, errno.EINVAL):  # EINVAL: not a regular file
            raise
        listing = await _list(path, sandbox, timeout_s, wording)
        if listing is None:
            raise
        if view_range is not None:
            raise ToolRefused(f"{path} is a directory; view_range is for files") from None
        return listing
    if b"\0" in data[:8192]:
        raise ToolRefused(f"{path} is a binary file of {len(data)} bytes; look at it with a command")
    if not data:
        return f"(empty file: {path})"
    text = _decode(data)
    lines = _lines(text)
    first, last = 1, len(lines)
    if view_range is not None:
        if len(view_range) != 2:
            raise ToolRefused(f"view_range must be two line numbers, [first, last], not {view_range}")
        first, last = view_range
        last = len(lines) if last == -1 else last
        if not 1 <= first <= last <= len(lines):
            raise ToolRefused(
                f"invalid view_range {view_range}: {path} has {len(lines)} lines, counted from 1; "
                "the last may be -1 for the end and must not come before the first"
            )
    if last - first > MAX_LINES or len(text) > MAX_VIEW and sum(map(len, lines[first - 1 : last])) > MAX_VIEW:
        raise ToolRefused(f"{path}, lines {first} to {last} of {len(lines)}, is too much to view; give a view_range")
    head = wording.viewed.format(path=path, first=first, last=last, total=len(lines))
    notes = []
    if "\r\n" in text and _is_crlf(text):
        notes.append("lines end in CRLF")
    if last == len(lines) and not text.endswith("\n"):
        notes.append("no newline at the end")
    note = f"\n({'; '.join(notes)})" if notes else ""
    return _clip(f"{head}\n{_numbered(lines[first - 1 : last], first)}", wording) + note


async def _list(path: str, sandbox: Sandbox, timeout_s: float, wording: Wording) -> str | None:
    """The entries of a folder, sorted; None if it is none. NUL-separated on the way, so that no name forges another."""
    folder = shlex.quote(path)
    found = await sandbox.exec(
        f"[ -d {folder} ] || exit 3; export LC_ALL=C; "
        f"find {folder} -mindepth 1 -maxdepth 2 -name '.*' -prune -o -printf '%P/%y\\0' "
        f"| sort -z | head -z -n {MAX_ENTRIES + 1}",
        timeout_s=timeout_s,
        max_bytes=1 << 20,
    )
    if found.exit_code == 3:
        return None
    entries = [entry.decode(errors="surrogateescape") for entry in found.stdout.split(b"\0") if entry]
    if not entries:
        return visible(found.stderr.decode(errors="replace").strip()) or f"(empty directory: {path})"
    names = [visible(entry[:-2]).replace("\n", "\\n") + "/" * (entry[-1] == "d") for entry in entries]
    shown = [posixpath.join(path, name) for name in names[:MAX_ENTRIES]]
    if len(names) > MAX_ENTRIES:
        shown.append(f"[... more than {MAX_ENTRIES} entries; list them with a command ...]")
    return _clip("\n".join([wording.folder.format(path=path), *shown]), wording)


async def _create(path: str, text: str, sandbox: Sandbox, wording: Wording) -> str:
    data = _encode(text)
    await sandbox.write({path: data})
    said = wording.created.format(path=path, size=len(data))
    if wording.echo:
        said = f"{said}\n{_clip(_numbered(_lines(text), 1), wording)}"
    return f"{said}\n{wording.review}".rstrip("\n")


async def _replace(path: str, old: str, new: str, sandbox: Sandbox, wording: Wording) -> str:
    if not old:
        raise ToolRefused("old_str is empty; use insert to add text, or create to replace the whole file")
    text = _decode(await sandbox.read(path, MAX_FILE_BYTES))
    if _is_crlf(text):
        old, new = _to_crlf(old), _to_crlf(new)
    if old == new:
        raise ToolRefused("old_str and new_str are the same; nothing was changed")
    count = text.count(old)
    if count == 0:
        raise ToolRefused(f"old_str does not occur in {path}; nothing was changed{_near_miss(text, old)}")
    if count > 1:
        raise ToolRefused(
            f"old_str occurs {count} times in {path}, beginning on lines {_places(text, old)}; nothing was changed; "
            "add lines around it until it is unique"
        )
    at = text.index(old)
    edited = text[:at] + new + text[at + len(old) :]
    await sandbox.write({path: _encode(edited)})
    line = text.count("\n", 0, at)
    return _edited(path, edited, line, line + new.count("\n") + 1, wording)


async def _insert(path: str, after: int, new: str, sandbox: Sandbox, wording: Wording) -> str:
    if not new:
        raise ToolRefused("new_str is empty; nothing was changed")
    text = _decode(await sandbox.read(path, MAX_FILE_BYTES))
    lines = _lines(text, keep_ends=True)
    if not 0 <= after <= len(lines):
        raise ToolRefused(f"invalid insert_line {after}: {path} has {len(lines)} lines; use 0 for the beginning")
    newline = "\n"
    if _is_crlf(text):
        newline, new = "\r\n", _to_crlf(new)
    before, behind = "".join(lines[:after]), "".join(lines[after:])
    if before and not before.endswith("\n"):
        before += newline  # a last line without newline; the inserted text becomes the last line in its stead
    elif not new.endswith("\n"):
        new += newline
    edited = before + new + behind
    await sandbox.write({path: _encode(edited)})
    return _edited(path, edited, after, after + len(_lines(new)), wording)


def _edited(path: str, text: str, start: int, end: int, wording: Wording) -> str:
    """What is said about an edit of the lines `start` to `end` (counted from 0, `end` excluded)."""
    lines = _lines(text)
    if not lines:
        return f"Edited {path}: it is empty now."
    start, end = max(0, start - CONTEXT_LINES), min(len(lines), end + CONTEXT_LINES)
    said = wording.edited.format(path=path, first=start + 1, last=end)
    if wording.snippets:
        said = f"{said}\n{_clip(_numbered(lines[start:end], start + 1), wording)}"
    return f"{said}\n{wording.review}".rstrip("\n")


def _numbered(lines: list[str], first: int) -> str:
    return "\n".join(f"{first + i:6}\t{visible(line.removesuffix(chr(13)))}" for i, line in enumerate(lines))


def _clip(text: str, wording: Wording) -> str:
    left_out = len(text) - wording.max_chars
    return text[: wording.max_chars] + "\n" + wording.clipped.format(left_out=left_out) if left_out > 0 else text


def _lines(text: str, keep_ends: bool = False) -> list[str]:
    """Lines by newline alone; a final newline ends the last line and begins none."""
    lines = text.split("\n")
    ended = lines.pop() if lines[-1] == "" else None
    if not keep_ends:
        return lines
    return [line + "\n" for line in lines] if ended is not None else [line + "\n" for line in lines[:-1]] + lines[-1:]


def _is_crlf(text: str) -> bool:
    return "\n" in text and text.count("\n") == text.count("\r\n")


def _to_crlf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")


def _places(text: str, old: str) -> str:
    """Line numbers of the first ten occurrences."""
    found: list[int] = []
    at = -1
    while len(found) <= 10 and (at := text.find(old, at + 1 if at < 0 else at + len(old))) >= 0:
        found.append(text.count("\n", 0, at) + 1)
    return ", ".join(map(str, found[:10])) + (", …" if len(found) > 10 else "")


def _near_miss(text: str, old: str) -> str:
    """Says where the same words stand with other white space; not of texts so long that looking would hold up the
    other trajectories."""
    if text.count("\n") * (old.count("\n") + 1) + len(text) > MAX_LOOK:
        return ""
    wanted = [" ".join(line.split()) for line in old.strip().split("\n")]
    lines = [" ".join(line.split()) for line in text.split("\n")]
    for i in range(len(lines) - len(wanted) + 1):
        if wanted[0] and lines[i : i + len(wanted)] == wanted:
            return f"; line {i + 1} differs only in white space"
    return ""


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _reason(path: str, refused: FileRefused) -> str:
    known = {
        errno.ENOENT: "does not exist",
        errno.EISDIR: "is a directory",
        errno.EINVAL: "is not a regular file",
        errno.ENXIO: "is not a regular file",
        errno.ENOTDIR: "lies below something that is not a directory (links are not followed)",
        errno.ELOOP: "is a symbolic link, which this tool does not follow; name the file it points to",
        errno.EFBIG: f"is larger than {MAX_FILE_BYTES >> 20} MiB; use a command such as sed or head",
        errno.ENOSPC: "cannot be written: the disk is full",
        errno.EACCES: "cannot be opened: permission denied",
        errno.EROFS: "lies on a read-only file system; work in /testbed",
        errno.ENAMETOOLONG: "has too long a name",
    }
    return f"{path} {known.get(refused.errno or 0) or refused.strerror or str(refused)}"
