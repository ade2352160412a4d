"""What goes over a sandbox's stream, in the host's words: paths, files and commands to it, results from it."""

import math
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import replace
from errno import EINVAL, ENAMETOOLONG
from typing import Any

from sandboxrl.envs.sandbox.inside.frames import RECORD
from sandboxrl.envs.sandbox.protocol import SHELL_STATES, WORKDIR, ExecResult, FileRefused, Resources, ShellResult

MAX_PATH = 64 << 10
"""Of a path, in bytes; the kernel takes 4096 at a time, and parts of it are opened one by one."""
MAX_SHOWN = 200
BATCH_BYTES = 4 << 20
"""Files travel in frames of about this size, so that neither side holds a large file twice."""

Fields = dict[bytes, bytes]


def encoded(text: str) -> bytes:
    """UTF-8; what cannot be encoded (a lone surrogate of a model's JSON) becomes a question mark."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def wire_path(path: str) -> bytes:
    """The absolute path in the sandbox; `..` is resolved by name, as no component may be a link."""
    if "\0" in path:
        raise FileRefused(EINVAL, os.strerror(EINVAL), path)
    name = encoded("/" + posixpath.normpath(posixpath.join(WORKDIR, path)).lstrip("/"))
    if len(name) > MAX_PATH:  # the executor takes a header that is too large for the end of the protocol
        raise FileRefused(ENAMETOOLONG, os.strerror(ENAMETOOLONG), path[:MAX_SHOWN])
    return name


def result_of(reply: Fields, payload: bytes, limit: int) -> ExecResult:
    """Raises KeyError, ValueError for an answer that does not add up."""
    kept = int(reply[b"kept"])
    totals = int(reply[b"stdout"]), int(reply[b"stderr"])
    duration_s = float(reply[b"duration"])
    if kept < 0 or [kept, len(payload) - kept] != [min(total, limit) for total in totals]:
        raise ValueError("sizes of the output do not add up")
    if not 0 <= duration_s < math.inf:
        raise ValueError("not a duration")
    return ExecResult(
        exit_code=int(reply[b"exit"]),
        stdout=cut(payload[:kept], totals[0], limit),
        stderr=cut(payload[kept:], totals[1], limit),
        timed_out=reply[b"timed_out"] == b"1",
        stdout_bytes=totals[0],
        stderr_bytes=totals[1],
        duration_s=duration_s,
        background=reply[b"background"] == b"1",
    )


def shell_result_of(reply: Fields, payload: bytes, limit: int) -> ShellResult:
    """Raises KeyError, ValueError for an answer that does not add up."""
    total, duration_s, state = int(reply[b"stdout"]), float(reply[b"duration"]), reply[b"state"].decode("ascii")
    if len(payload) != min(total, limit):
        raise ValueError("sizes of the output do not add up")
    if not 0 <= duration_s < math.inf or state not in SHELL_STATES:
        raise ValueError("not a duration, or not a state")
    timed_out = reply[b"timed_out"] == b"1"
    ended = state in ("done", "ended") and not timed_out
    return ShellResult(
        state, cut(payload, total, limit), total, int(reply[b"exit"]) if ended else None, timed_out, duration_s
    )


def file_frames(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """Write records (see `files.write_files`) in payloads of about BATCH_BYTES; a large file spans several."""
    batch = bytearray()
    for path, data in files.items():
        name = wire_path(path)
        for offset in range(0, max(1, len(data)), BATCH_BYTES):
            piece = data[offset : offset + BATCH_BYTES]
            batch += RECORD.pack(len(name), offset, len(piece)) + name + piece
            if len(batch) >= BATCH_BYTES:
                yield bytes(batch)
                batch.clear()
    if batch:
        yield bytes(batch)


def cut(kept: bytes, total: int, limit: int) -> bytes:
    """At most `limit` bytes: all of it, or head, a line that says how much is missing, and tail."""
    if total <= limit:
        return kept
    size = limit - len(b"\n[... %d bytes dropped ...]\n" % total)
    if size < 2:
        return kept[:limit]
    note = b"\n[... %d bytes dropped ...]\n" % (total - size)
    return kept[: size // 2] + note + kept[len(kept) - (size - size // 2) :]


def completed(known: Resources, seen: Fields) -> Resources:
    """What the kernel has counted, and of the rest what PID 1 has seen. Raises ValueError, OverflowError."""
    places = {"cpu_s": b"cpu", "peak_memory_bytes": b"memory", "peak_processes": b"processes"}
    found: dict[str, Any] = {name: float(seen[key]) for name, key in places.items() if seen.get(key, b"0") != b"0"}
    if b"kills" in seen:
        found["oom_kills"] = float(seen[b"kills"])
    lacking = {name: value for name, value in found.items() if getattr(known, name) is None}
    return replace(known, **{name: value if name == "cpu_s" else int(value) for name, value in lacking.items()})
