"""TensorBoard as a tracker: event files in RUN/tensorboard, written here; to look at them install `tensorboard`.

An event file is a row of records (length, checksum, bytes, checksum), each the protobuf message `Event`. The few fields
that are needed are encoded below, because the package that would do it weighs more than all of this project's own.

    Event    1 wall_time double   2 step int64   3 file_version string   5 summary Summary
    Summary  1 value, repeated:   1 tag string   2 simple_value float    8 tensor TensorProto   9 metadata
"""

import math
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxrl.data.errors import InputError, one_line
from sandboxrl.rl.reports.trackers.tracker import Completion, Tracker

MAX_ROWS = 16
"""Trajectories of one step: TensorBoard shows them as text."""
SHOWN = ("task", "reward", "stop", "question", "gold", "answer", "text")
DT_STRING = 7


class TensorBoard:
    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._good = 0
        self._write(text(3, "brain.Event:2"))

    def log(self, row: Mapping[str, float]) -> None:
        values = {key: float(value) for key, value in row.items() if key != "step" and math.isfinite(value)}
        summary = b"".join(nested(1, text(1, key) + _FLOAT.pack(0x15, value)) for key, value in values.items())
        self._write(varint(2, int(row["step"])) + nested(5, summary))

    def completions(self, name: str, step: int, rows: Sequence[Completion]) -> None:
        lines = ["|".join(["", *SHOWN, ""]), "|" + "---|" * len(SHOWN)]
        lines += ["|".join(["", *(cell(row[key]) for key in SHOWN), ""]) for row in rows[:MAX_ROWS]]  # type: ignore[literal-required]
        shape = nested(2, nested(2, varint(1, 1)))  # one text
        tensor = varint(1, DT_STRING) + shape + text(8, "\n".join(lines))
        value = text(1, f"completions/{name}") + nested(8, tensor) + nested(9, nested(1, text(1, "text")))
        self._write(varint(2, step) + nested(5, nested(1, value)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        os.close(self._file)

    def _write(self, event: bytes) -> None:
        """Append one record, whole or not at all: behind a torn one nothing could be read."""
        event = _DOUBLE.pack(0x09, time.time()) + event
        length = struct.pack("<Q", len(event))
        record = memoryview(length + struct.pack("<I", masked(length)) + event + struct.pack("<I", masked(event)))
        try:
            while record:
                record = record[os.write(self._file, record) :]
        except OSError:
            os.ftruncate(self._file, self._good)
            os.lseek(self._file, self._good, os.SEEK_SET)
            raise
        self._good = os.lseek(self._file, 0, os.SEEK_CUR)


def open_tensorboard(folder: str) -> tuple[Tracker, str]:
    """A new event file in `folder`; a run that goes on has several, which TensorBoard reads as one. Raises InputError
    where the folder cannot be written."""
    made = Path(folder)
    name = f"events.out.tfevents.{time.time_ns() // 1_000_000_000:010d}.{socket.gethostname()}.{os.getpid()}"
    try:
        made.mkdir(parents=True, exist_ok=True)
        return TensorBoard(made / name), ""
    except OSError as error:
        raise InputError(f"{folder}: {one_line(error)}") from None


def cell(value: object) -> str:
    """A value inside a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", "<br>")


# ---- protobuf and the checksum


_FLOAT, _DOUBLE = struct.Struct("<Bf"), struct.Struct("<Bd")


def number(value: int) -> bytes:
    """Base 128, the lowest seven bits first. `value` is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def varint(field: int, value: int) -> bytes:
    return number(field << 3) + number(value)


def nested(field: int, content: bytes) -> bytes:
    return number(field << 3 | 2) + number(len(content)) + content


def text(field: int, content: str) -> bytes:
    return nested(field, content.encode("utf-8", errors="replace"))


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


CRC_32C = _table()


def masked(content: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and moved as the format wants it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = CRC_32C[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
