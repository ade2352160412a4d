"""The program that is PID 1 of a sandbox: it runs commands and reads and writes files for the host over one stream.

    python3 -I -S -c ... SOCKET FILTER [NAME=LIMIT]...     runs `main`: the host's unix socket, a filter file, bounds

Bubblewrap's sandboxes are forked by `envs/sandbox/inside/nursery.py`, which calls `serve` with the stream it was given.

Every request carries an `id`, any number may be in flight, and each gets exactly one reply with that id; the first
frame is `ready=1`.

    request                                                reply
    op=ping                                                -
    op=exec timeout= keep= cwd= env.NAME=...               exit= timed_out= duration= background= stdout= stderr= kept=
            payload: the command                                   payload: kept bytes of stdout, then of stderr
                                                           or machine= (it cannot be run, and nothing in here is why)
    op=shell input= timeout= quiet= wait= keep=            state= exit= timed_out= duration= stdout= | machine=
            payload: a command, or what is typed                   payload: kept bytes of output since the last answer
    op=read path= max=                                     payload: the file
    op=read path= offset= max=                             size= mode= (of the whole file; octal)
                                                           payload: what there is from the offset, `max` at most
    op=write       payload: records (see `write_files`)    -
    op=pack path= | session=                               session= (of the next part; empty: this was the last one)
                                                           payload: records (see `folders`)
    op=unpack path=   payload: records                     -
    op=save room= max=  payload: folders, joined by NUL;   size= (what they are; written if it is at most `room`)
            with a descriptor of a memory file
    op=load size=       payload and descriptor as in save  -
    op=nuke                                                -
    op=resources                                           cpu= memory= kills= processes= (0: no sample was taken;
                                                           absent: not watched)
    a file or request that cannot be served                errno= message=

A frame without `id` is its last: `farewell=` says why it gives up. End of file on the stream is the lease: PID 1 ends
and the kernel ends everything in the namespace.

Any Python from 3.9 on runs it, as the image has it. It imports the smallest modules of the standard library (`posix`
is what `os` is made of), all at the start: a container pays for them with time and memory, and a command may delete the
interpreter's own files. It refuses to run unless it is PID 1 of a pid namespace of its own.
"""

from __future__ import annotations

import _signal
import _socket
import errno
import posix
import resource
import select
import struct
import sys
import time

from sandboxrl.envs.sandbox.inside.commands import Command, Commands
from sandboxrl.envs.sandbox.inside.files import read_file, read_part, write_files
from sandboxrl.envs.sandbox.inside.folders import packed, unpack
from sandboxrl.envs.sandbox.inside.frames import (
    CLOSE_ON_EXEC,
    DESCRIPTOR,
    FRAME,
    MAX_PAYLOAD,
    bounds_of_frame,
    pack,
    unpack_header,
)
from sandboxrl.envs.sandbox.inside.processes import (
    hide_from_commands,
    install_filter,
    nuke,
    processor_s,
    refuse_elsewhere,
)
from sandboxrl.envs.sandbox.inside.saved import load, save
from sandboxrl.envs.sandbox.inside.shell import Call, Shell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PACKING = 4
MAX_FAREWELL = 500
READ_BYTES = 96 << 10  # below what malloc takes from the kernel anew each time
IGNORED = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGPIPE, _signal.SIGXFSZ)
LIMITS = {
    "processes": resource.RLIMIT_NPROC,
    "open_files": resource.RLIMIT_NOFILE,
    "file_bytes": resource.RLIMIT_FSIZE,
    "core_bytes": resource.RLIMIT_CORE,
}


class Executor:
    """One thread, one poll loop, any number of requests in flight."""

    def __init__(self, stream: int, processes: int, memory_bytes: int) -> None:
        self.stream = stream
        self.socket = _socket.socket(fileno=stream)
        self.buffer = bytearray()
        self.descriptors: list[int] = []  # that came with frames, in their order
        self.poll = select.poll()
        self.poll.register(stream, select.POLLIN)
        posix.set_blocking(stream, False)
        self.wake, waker = posix.pipe()
        posix.set_blocking(self.wake, False)
        posix.set_blocking(waker, False)
        self.poll.register(self.wake, select.POLLIN)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in IGNORED:
            _signal.signal(number, _signal.SIG_IGN)
        self.commands = Commands(self.poll, self.answer, self.give_up, processes, memory_bytes)
        self.shell = Shell(self.commands, self.answer_shell, self.give_up)
        self.packing: dict[bytes, Iterator[bytes]] = {}  # by the id of the request that began it

    def send(self, fields: dict[bytes, bytes], payload: bytes = b"") -> None:
        data = memoryview(pack(fields, payload))
        while data:
            try:
                data = data[posix.write(self.stream, data) :]
            except BlockingIOError:
                waiter = select.poll()
                waiter.register(self.stream, select.POLLOUT)
                waiter.poll()

    def run(self) -> None:
        """Serve until the host closes the stream."""
        self.send({b"ready": b"1"})
        while True:
            child = False
            for descriptor, _ in self.poll.poll(self.wait_ms()):
                if descriptor == self.stream:
                    if not self.receive():
                        return
                elif descriptor == self.wake:
                    posix.read(descriptor, 4096)
                    child = True
                elif descriptor == self.shell.polled:
                    self.shell.ready()
                else:
                    self.commands.drain(descriptor)
            if child:
                self.commands.reap()
            self.commands.check_clocks()
            self.shell.check_clocks()

    def wait_ms(self) -> int | None:
        """Until a clock strikes; None: there is none."""
        times = [*self.commands.clocks(), *self.shell.clocks()]
        return max(0, min(3_600_000, int((min(times) - time.monotonic()) * 1000) + 1)) if times else None

    def receive(self) -> bool:
        """Take what the host sent; False at the end of the stream or of the protocol."""
        try:
            data, beside, _, _ = self.socket.recvmsg(READ_BYTES, _socket.CMSG_LEN(DESCRIPTOR.size), CLOSE_ON_EXEC)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if not data:
            return False
        self.descriptors += [DESCRIPTOR.unpack(one[2])[0] for one in beside]
        self.buffer += data
        try:
            bounds = bounds_of_frame(self.buffer)
            if not bounds:
                return True
            frames, self.buffer = memoryview(self.buffer), bytearray()
            while bounds:
                start, end = bounds
                header, payload, frames = bytes(frames[FRAME.size : start]), frames[start:end], frames[end:]
                self.serve(unpack_header(header), payload)
                bounds = bounds_of_frame(frames)
        except (ValueError, KeyError):
            return False
        self.buffer += frames
        return True

    def serve(self, fields: dict[bytes, bytes], payload: memoryview) -> None:
        """Raises KeyError for what is no request."""
        identity, operation = fields[b"id"], OPERATIONS[fields[b"op"]]
        try:
            operation(self, identity, fields, payload)
        except OSError as error:
            self.refuse(identity, error.errno or errno.EIO, error.strerror or "")
        except (ValueError, KeyError, struct.error) as error:
            self.refuse(identity, 0, f"bad request: {error!r}")

    def refuse(self, identity: bytes, number: int, message: str) -> None:
        self.send({b"id": identity, b"errno": b"%d" % number, b"message": message.encode("utf-8", "replace")})

    def op_ping(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        self.send({b"id": identity})

    def op_nuke(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        nuke()
        self.send({b"id": identity})

    def op_resources(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        seen = {b"cpu": b"%.3f" % processor_s()}
        if self.commands.memory_bytes:
            seen[b"memory"] = b"%d" % self.commands.peak_bytes
            seen[b"processes"] = b"%d" % self.commands.peak_processes
            seen[b"kills"] = b"%d" % len(self.commands.killed)
        self.send({b"id": identity, **seen})

    def op_read(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        if b"offset" not in fields:
            self.send({b"id": identity}, read_file(fields[b"path"], int(fields[b"max"])))
            return
        offset, most = int(fields[b"offset"]), int(fields[b"max"])
        if not (0 <= offset < 1 << 62 and 0 <= most <= MAX_PAYLOAD):
            raise ValueError("offset or max out of range")
        data, size, mode = read_part(fields[b"path"], offset, most)
        self.send({b"id": identity, b"size": b"%d" % size, b"mode": b"%o" % mode}, data)

    def op_write(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        write_files(payload)
        self.send({b"id": identity})

    def op_pack(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        session = fields.get(b"session", identity)
        if session == identity:
            while len(self.packing) >= MAX_PACKING:  # nobody asked on: the oldest is given up
                del self.packing[next(iter(self.packing))]
            self.packing[session] = packed(fields[b"path"])
        parts = self.packing[session]
        try:
            part, more = next(parts), True
        except StopIteration:
            part, more = b"", False
        except OSError:
            del self.packing[session]
            raise
        if not more:
            del self.packing[session]
        self.send({b"id": identity, b"session": session if more else b""}, part)

    def op_unpack(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        unpack(fields[b"path"], payload)
        self.send({b"id": identity})

    def op_save(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        file = self.descriptors.pop(0)
        try:
            size = save(bytes(payload).split(b"\0"), file, int(fields[b"room"]), int(fields[b"max"]))
        finally:
            posix.close(file)
        self.send({b"id": identity, b"size": b"%d" % size})

    def op_load(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        file = self.descriptors.pop(0)
        try:
            nuke()
            load(bytes(payload).split(b"\0"), file, int(fields[b"size"]))
        finally:
            posix.close(file)
        self.send({b"id": identity})

    def op_exec(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        timeout_s, keep = float(fields[b"timeout"]), int(fields[b"keep"])
        if not (0 < timeout_s < 1e9 and 0 <= keep <= MAX_PAYLOAD // 2):
            raise ValueError("timeout or keep out of range")
        variables = {name[4:]: value for name, value in fields.items() if name.startswith(b"env.")}
        self.commands.start(Command(identity, timeout_s, keep), bytes(payload), fields[b"cwd"], variables)

    def op_shell(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        times = [float(fields[name]) for name in (b"timeout", b"quiet", b"wait")]
        keep = int(fields[b"keep"])
        if not (0 < times[0] < 1e9 and 0 < times[1] < 1e9 and 0 <= times[2] < 1e9 and 0 <= keep <= MAX_PAYLOAD // 2):
            raise ValueError("a time or keep out of range")
        self.shell.ask(Call(identity, *times), bytes(payload), fields[b"input"] == b"1", keep)

    def give_up(self, identity: bytes, why: str) -> None:
        self.send({b"id": identity, b"machine": why.encode()})

    def answer_shell(self, identity: bytes, fields: dict[bytes, bytes], output: bytes) -> None:
        self.send({b"id": identity, **fields}, output)

    def answer(self, command: Command, outputs: list[bytes]) -> None:
        assert command.exit is not None
        self.send(
            {
                b"id": command.id,
                b"exit": b"%d" % command.exit,
                b"timed_out": b"%d" % command.timed_out,
                b"duration": b"%.6f" % (time.monotonic() - command.started),
                b"background": b"%d" % bool(command.pipes),
                b"stdout": b"%d" % command.kept[0].total,
                b"stderr": b"%d" % command.kept[1].total,
                b"kept": b"%d" % len(outputs[0]),
            },
            outputs[0] + outputs[1],
        )


OPERATIONS = {
    b"ping": Executor.op_ping,
    b"exec": Executor.op_exec,
    b"shell": Executor.op_shell,
    b"read": Executor.op_read,
    b"write": Executor.op_write,
    b"pack": Executor.op_pack,
    b"unpack": Executor.op_unpack,
    b"save": Executor.op_save,
    b"load": Executor.op_load,
    b"nuke": Executor.op_nuke,
    b"resources": Executor.op_resources,
}


def serve(stream: int, limits: dict[str, int]) -> None:
    """Bound this process and what it starts by `limits` (names of LIMITS, and `memory_bytes`, which it watches), hide
    it from its commands and serve the host on `stream`. Never returns."""
    refuse_elsewhere()
    for name, limit in limits.items():
        if name != "memory_bytes":
            _, hard = resource.getrlimit(LIMITS[name])
            bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(LIMITS[name], (bound, bound))
    executor = Executor(stream, limits.get("processes", 1 << 30), limits.get("memory_bytes", 0))
    hide_from_commands()
    try:
        executor.run()
    except BaseException as error:
        executor.send({b"farewell": repr(error).encode("utf-8", "replace")[:MAX_FAREWELL]})
    posix._exit(0)  # without the interpreter's own end: the kernel ends the rest


def connect(path: str) -> int:
    """A stream to the host's unix socket."""
    host = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    host.connect(path)
    return host.detach()


def main() -> None:
    refuse_elsewhere()
    path, filter_path, *words = sys.argv[1:]
    limits = {}
    for word in words:
        name, limit = word.split("=")
        limits[name] = int(limit)
    with open(filter_path, "rb") as file:
        instructions = file.read()
    stream = connect(path)
    install_filter(instructions)
    serve(stream, limits)
