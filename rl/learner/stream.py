"""Bytes from one sender to many receivers over TCP, none of which can hold up the others for ever.

    with Sender(["0", "1"], num_bytes, host) as sender:    the sender's end
        tell(sender.info("0"))                             to each receiver, by another way
        sender.connect(deadline, alive)                    wait for those that come
        sender.send(part)                                  again and again
        lost = sender.finish()                             {"1": "what happened"}
    path = receive(info, file)                             a receiver's end

A receiver shows a token of its own, so nobody else is served. All it gets is a length that it knows already, that many
bytes, and their checksum: nothing is interpreted. One that does not take a part within `STALL_S` is dropped, and the
others go on. Imports nothing heavy.
"""

import contextlib
import hmac
import os
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, BinaryIO

TOKEN_BYTES = 32
STALL_S = 60.0
"""How long one part may take to leave, or to arrive."""
GREETING_S = 10.0
"""How long a connection may take to show its token."""
POLL_S = 0.2
PART_BYTES = 16 << 20


class StreamBroken(Exception):
    """The sender is gone, is too slow, or sent other bytes than it meant to."""


class Sender:
    """One publication to the receivers called `names`; closed, nothing of it is left."""

    def __init__(self, names: Sequence[str], num_bytes: int, host: str) -> None:
        self._tokens = {name: secrets.token_hex(TOKEN_BYTES // 2) for name in names}
        self._num_bytes, self._checksum = num_bytes, 0
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._listener.settimeout(POLL_S)
        self._connected: dict[str, socket.socket] = {}
        self._lost: dict[str, str] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._pool = ThreadPoolExecutor(max(1, len(names)), thread_name_prefix="weights")
        self._accepting = threading.Thread(target=self._accept, name="weights", daemon=True)
        self._accepting.start()

    def info(self, name: str) -> dict[str, Any]:
        """What `receive` takes."""
        host, port = self._listener.getsockname()[:2]
        return {"host": host, "port": port, "token": self._tokens[name], "num_bytes": self._num_bytes}

    def connect(self, timeout_s: float, gone: Callable[[], dict[str, str]]) -> None:
        """Wait until every receiver is connected, or is one of `gone()` (name -> why). Those that are still missing
        after `timeout_s` are lost."""
        deadline = time.monotonic() + timeout_s
        while missing := self._missing():
            for name, reason in gone().items():
                self._lose(name, reason)
            if time.monotonic() > deadline:
                for name in missing:
                    self._lose(name, f"it did not ask for the new weights within {timeout_s:.0f} s")
            with self._changed:
                self._changed.wait(POLL_S)

    def send(self, part: memoryview) -> None:
        """The next bytes, to every receiver that is still there. Returns when they have left."""
        for start in range(0, len(part), PART_BYTES):
            piece = part[start : start + PART_BYTES]
            self._checksum = zlib.crc32(piece, self._checksum)
            self._send(piece)

    def finish(self) -> dict[str, str]:
        """Send the checksum; returns what became of those that were lost, by name."""
        self._send(memoryview(self._checksum.to_bytes(4, "big")))
        return dict(self._lost)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            connections, self._connected = list(self._connected.values()), {}
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept, and refuses from now on
        self._accepting.join()
        self._listener.close()
        for connection in connections:
            connection.close()
        self._pool.shutdown(wait=False)

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _missing(self) -> list[str]:
        with self._changed:
            return [name for name in self._tokens if name not in self._connected and name not in self._lost]

    def _send(self, piece: memoryview) -> None:
        with self._changed:
            connections = dict(self._connected)
        sending = {self._pool.submit(connection.sendall, piece): name for name, connection in connections.items()}
        done, _ = wait(sending, timeout=2 * STALL_S)  # each has a time limit of its own
        for future, name in sending.items():
            if future not in done:
                self._lose(name, f"it took none of its new weights for {STALL_S:.0f} s")
            elif (error := future.exception()) is not None:
                self._lose(name, f"its connection broke while it took new weights: {error}")

    def _lose(self, name: str, reason: str) -> None:
        with self._changed:
            self._lost.setdefault(name, reason)
            connection = self._connected.pop(name, None)
        if connection is not None:
            connection.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                if self._closed:
                    return
                time.sleep(POLL_S)  # out of descriptors: others may come back
                continue
            threading.Thread(target=self._greet, args=(connection,), name="weights", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        """Take the connection of a receiver that shows its token; close any other."""
        try:
            connection.settimeout(GREETING_S)
            shown = _read_exactly(connection, TOKEN_BYTES)
            connection.settimeout(STALL_S)
        except (OSError, StreamBroken):
            connection.close()
            return
        with self._changed:
            for name, token in self._tokens.items():
                if hmac.compare_digest(token.encode(), shown) and not self._closed and name not in self._lost:
                    self._connected[name] = connection
                    self._changed.notify()
                    return
        connection.close()


def receive(info: dict[str, Any], file: BinaryIO) -> None:
    """Write into `file` what the sender of `info` sends. Raises StreamBroken."""
    try:
        with socket.create_connection((info["host"], info["port"]), timeout=STALL_S) as connection:
            connection.settimeout(2 * STALL_S)  # another receiver may be about to be dropped
            connection.sendall(info["token"].encode())
            left, checksum = info["num_bytes"], 0
            block = memoryview(bytearray(min(left, PART_BYTES) or 1))
            while left:
                num = connection.recv_into(block[: min(left, len(block))])
                if not num:
                    raise StreamBroken(f"the sender of new weights is gone, {left} bytes before the end")
                checksum = zlib.crc32(block[:num], checksum)
                file.write(block[:num])
                left -= num
            if _read_exactly(connection, 4) != checksum.to_bytes(4, "big"):
                raise StreamBroken("the new weights have another checksum than they were sent with")
    except OSError as error:
        raise StreamBroken(f"the connection to the sender of new weights broke: {error}") from error


def open_memory(label: str) -> tuple[BinaryIO, dict[str, Any]]:
    """An empty file in memory that no directory lists, and what `RolloutWorker.load_weights` takes once it is written.
    It is gone when it is closed, and also when this process is killed."""
    file = os.fdopen(os.memfd_create("weights", os.MFD_CLOEXEC), "wb")
    return file, {"path": f"/proc/{os.getpid()}/fd/{file.fileno()}", "label": label}


def _read_exactly(connection: socket.socket, num: int) -> bytes:
    found = b""
    while len(found) < num:
        more = connection.recv(num - len(found))
        if not more:
            raise StreamBroken("the connection ended too soon")
        found += more
    return found
