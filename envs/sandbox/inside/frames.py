"""The framed protocol between a sandbox and its host, as both sides speak it.

Frame, both ways: u32 header length, u32 payload length (big endian), header, payload. The header is `key=value` fields
joined by NUL bytes. Which requests there are is said in `envs/sandbox/inside/serve.py`.
"""

from __future__ import annotations

import struct

FRAME = struct.Struct(">II")
RECORD = struct.Struct(">IQQ")
DESCRIPTOR = struct.Struct("i")
CLOSE_ON_EXEC = 0x40000000
"""How the kernel passes a descriptor beside a frame, and MSG_CMSG_CLOEXEC."""
MAX_HEADER = 1 << 20
MAX_PAYLOAD = 64 << 20


def pack_header(fields: dict[bytes, bytes]) -> bytes:
    return b"\0".join(b"%b=%b" % item for item in fields.items())


def pack_head(fields: dict[bytes, bytes], payload_size: int) -> bytes:
    """A frame up to its payload."""
    header = pack_header(fields)
    return FRAME.pack(len(header), payload_size) + header


def pack(fields: dict[bytes, bytes], payload: bytes = b"") -> bytes:
    return pack_head(fields, len(payload)) + payload


def unpack_header(header: bytes) -> dict[bytes, bytes]:
    """Raises ValueError for what is not a list of `key=value` fields."""
    fields = {}
    for field in header.split(b"\0"):
        name, value = field.split(b"=", 1)
        fields[name] = value
    return fields


def bounds_of_frame(data: bytearray | memoryview) -> tuple[int, int] | None:
    """Where the payload of the first frame begins and ends; None while it is not whole. ValueError: it is too large."""
    if len(data) < FRAME.size:
        return None
    header_size, payload_size = FRAME.unpack_from(data)
    if header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
        raise ValueError("frame too large")
    start = FRAME.size + header_size
    return (start, start + payload_size) if start + payload_size <= len(data) else None
