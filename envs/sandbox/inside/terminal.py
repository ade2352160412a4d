"""A terminal of a sandbox: this end of it, which types and reads, and what is in the foreground at the other."""

from __future__ import annotations

import errno
import fcntl
import posix
import struct

from sandboxrl.envs.sandbox.inside.processes import live_processes, stat_fields

GET_MODES, SET_MODES, MODES_BYTES = 0x5401, 0x5402, 60
POSTPROCESSED, ECHO, BY_LINES = 0o1, 0o10, 0o2
READ_CALL = {"x86_64": b"0", "aarch64": b"63"}.get(posix.uname().machine, b"none")
READ_BYTES = 1 << 16
MAX_LINE, MAX_UNSENT = 4095, 1 << 20
"""A terminal keeps no more of one line; what is typed to a program that does not read waits here."""


class Terminal:
    """Made with its other end open, for whoever shall live there; `let_go` of that when it does. Raises OSError."""

    def __init__(self) -> None:
        self.unsent = bytearray()
        self.descriptor, self.slave = posix.openpty()
        try:
            self.name = posix.ttyname(self.slave)
            posix.set_blocking(self.descriptor, False)
            self.set_modes()
        except OSError:
            self.let_go()
            self.close()
            raise

    def let_go(self) -> None:
        posix.close(self.slave)

    def close(self) -> None:
        posix.close(self.descriptor)

    def set_modes(self) -> None:
        """What is typed is not shown again, and output is left as it is; line by line, with the usual keys."""
        modes = bytearray(fcntl.ioctl(self.descriptor, GET_MODES, bytes(MODES_BYTES)))
        inputs, outputs, control, local = struct.unpack_from("4I", modes)
        struct.pack_into("4I", modes, 0, inputs, outputs & ~POSTPROCESSED, control, (local | BY_LINES) & ~ECHO)
        fcntl.ioctl(self.descriptor, SET_MODES, bytes(modes))

    def type(self, data: bytes) -> None:
        """As much as the terminal takes now; the rest stays in `unsent`. Raises OSError for what none takes."""
        if max(map(len, data.split(b"\n"))) > MAX_LINE:
            raise OSError(errno.E2BIG, f"a terminal takes lines of at most {MAX_LINE} bytes")
        if len(self.unsent) + len(data) > MAX_UNSENT:
            raise OSError(errno.ENOBUFS, "the program does not read what it is sent")
        self.unsent += data
        self.send()

    def send(self) -> None:
        try:
            while self.unsent:
                del self.unsent[: posix.write(self.descriptor, self.unsent)]
        except BlockingIOError:
            pass
        except OSError:  # nobody is there
            self.unsent.clear()

    def read(self) -> bytes | None:
        """What has been written there; None when nothing more will be, as the other end is closed. Raises
        BlockingIOError."""
        try:
            return posix.read(self.descriptor, READ_BYTES) or None
        except BlockingIOError:
            raise
        except OSError:
            return None

    def waits_for_input(self, session: int, but: int) -> bool:
        """Whether a program of the foreground, other than the process `but`, sleeps in a read of the terminal, or has
        taken its keys one by one and sleeps. False where the kernel does not tell."""
        try:
            group = posix.tcgetpgrp(self.descriptor)
            local = struct.unpack_from("4I", fcntl.ioctl(self.descriptor, GET_MODES, bytes(MODES_BYTES)))[3]
        except OSError:
            return False
        states = []
        for pid, (_, owner, _) in live_processes().items():
            try:
                fields = stat_fields(pid) if owner == session and pid != but else []
                if fields and int(fields[2]) == group:
                    states.append(fields[0])
                    if fields[0] == b"S" and self._is_reading(pid):
                        return True
            except OSError:
                pass  # it has ended, or hides
        return not local & BY_LINES and bool(states) and set(states) == {b"S"}

    def _is_reading(self, pid: int) -> bool:
        """Raises OSError."""
        with open(f"/proc/{pid}/syscall", "rb") as file:
            words = file.read().split()
        if len(words) < 2 or words[0] != READ_CALL:
            return False
        return posix.readlink(f"/proc/{pid}/fd/{int(words[1], 16)}") in (self.name, "/dev/tty")
