"""The shell that persists: one interactive bash on a terminal, for as long as it lives.

A command reaches it in a file, so that it may be long and of many lines: what is typed is always the same short line,
which reads the file. What runs in the foreground is answered by what is typed. Each prompt tells how the last command
ended, and each command that it begins, by a mark in the terminal's own stream and so in order with all output. A
policy that forges marks, closes descriptors or kills its shell misleads nobody but itself: every question is answered,
at the time limit at the latest, and where the shell has ended the next command gets a new one.
"""

from __future__ import annotations

import _signal
import errno
import posix
import select
import time

from sandboxrl.envs.sandbox.inside.commands import (
    BASH,
    KILL_AGAIN_S,
    SHORT,
    TERM_GRACE_S,
    WORKDIR,
    Commands,
    Kept,
    anonymous_file,
)
from sandboxrl.envs.sandbox.inside.files import is_folder, write_at
from sandboxrl.envs.sandbox.inside.processes import live_processes, newest_process
from sandboxrl.envs.sandbox.inside.terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPT_FD = 250
RUN_SCRIPT = b"\\builtin . /dev/fd/%d\n" % SCRIPT_FD
SETTINGS = rb"""PS0='\e]%b+\a' PS1= PS2=
PROMPT_COMMAND='builtin printf "\e]%b%%d\a" "$?" >/dev/tty; PS1= PS2='
readonly PROMPT_COMMAND; set +o history
"""
"""The status goes to the terminal itself, whatever has become of the shell's own output. A prompt that a program sets
(`activate` of a virtual environment) would stand in the output of the next command."""
MAX_MARK = 64
SETTLE_S, MAX_SETTLE_S = 0.1, 1.6
"""Of silence until it is looked whether a program waits for input: at first, and at most."""
PROMPT_GRACE_S = 0.5
READS = 16
"""Of its terminal at a time: there are others to serve."""
RENEWED = b"sandbox: the shell had ended; this is a new one\n"


class Call:
    """A question to the shell that is not answered yet."""

    __slots__ = (
        "id", "started", "deadline", "until", "quiet_s", "heard", "settle_s", "look_at",
        "timed_out", "kill_at", "kills",
    )  # fmt: skip

    def __init__(self, identity: bytes, timeout_s: float, quiet_s: float, wait_s: float) -> None:
        """It is answered after `quiet_s` without output or, where that is not 0, after `wait_s` whatever happens."""
        self.id = identity
        self.started = self.heard = time.monotonic()
        self.deadline = self.started + timeout_s
        self.until = self.started + wait_s if wait_s else 0.0
        self.quiet_s = quiet_s
        self.settle_s = SETTLE_S
        self.look_at = self.started + SETTLE_S
        self.timed_out = False
        self.kill_at = 0.0
        self.kills = 0


class Shell:
    """One bash at a time, and at most one question that waits for it."""

    def __init__(
        self,
        commands: Commands,
        answer: Callable[[bytes, dict[bytes, bytes], bytes], None],
        give_up: Callable[[bytes, str], None],
    ) -> None:
        self.commands = commands
        self.answer = answer  # called with the id of a question, fields, and the output since the answer before
        self.give_up = give_up  # called with the id of a question when there can be no shell, by nobody's doing inside
        self.pid = self.script = self.polled = -1
        self.terminal: Terminal | None = None
        self.mark = self.held = b""  # what every mark begins with; the end of the output, where one may have begun
        self.keep = 0
        self.kept = Kept(0)
        self.queued: bytes | None = None  # a command that waits for the first prompt
        self.prompted = self.running = self.begun = self.lost = False
        self.spent_s = 0.0  # of its time limit, by the command that runs
        self.born = (0, 0)  # the newest process before it
        self.call: Call | None = None

    def ask(self, call: Call, text: bytes, is_input: bool, keep: int) -> None:
        """Run `text`, or type it to what runs; at most `keep` bytes of output are answered. Raises OSError for what no
        terminal takes."""
        if self.call or (self.running and not is_input):
            self.reply(call, b"busy", 0, Kept(0))
            return
        is_key = len(text) == 1 and text < b" "  # those mean something to the shell itself: Ctrl-D ends it
        if is_input and not self.running and (self.pid < 0 or not (is_key or text == b"")):
            self.reply(call, b"idle", 0, Kept(0))
            return
        if is_input and text and self.terminal:
            self.terminal.type(text)
        if not self.keep:
            self.keep, self.kept = keep, Kept(keep)
        if not is_input:
            self.spent_s = 0.0
        self.call = call
        call.deadline -= self.spent_s
        if not is_input and (self.pid >= 0 or self.open(call)):
            self.running, self.queued = True, text
            if self.prompted:
                self.run_queued(call)
        self.poll()

    def open(self, call: Call) -> bool:
        """A new bash. False: there can be none, and that is answered."""
        if self.commands.clear_when_full():
            self.kept.add(b"sandbox: too many processes were running; all of them were ended\n")
        if self.lost:
            self.kept.add(RENEWED)
        self.prompted = self.lost = False
        try:
            self.terminal, self.script = Terminal(), anonymous_file()
        except OSError as error:
            self.refuse(call, error)
            return False
        try:
            self.mark = b"\x1b]" + posix.urandom(8).hex().encode()
            write_at(self.script, SETTINGS % (self.mark[2:], self.mark[2:]), 0)
            posix.chdir(WORKDIR if is_folder(WORKDIR) else b"/")
            self.pid = self.commands.spawn_bash(
                [BASH, "--noprofile", "--noediting", "--rcfile", f"/dev/fd/{SCRIPT_FD}", "-i"],
                {b"PAGER": b"cat", **self.commands.environment},
                [
                    (posix.POSIX_SPAWN_OPEN, 0, self.terminal.name, posix.O_RDWR, 0),  # and so its session's own
                    (posix.POSIX_SPAWN_DUP2, 0, 1),
                    (posix.POSIX_SPAWN_DUP2, 0, 2),
                    (posix.POSIX_SPAWN_DUP2, self.script, SCRIPT_FD),
                ],
            )
        except OSError as error:
            self.close()
            self.refuse(call, error)
            return False
        finally:
            self.terminal.let_go()
        self.commands.lasting[self.pid] = self.ended
        self.commands.watch_from_now()
        return True

    def refuse(self, call: Call, error: OSError) -> None:
        if error.errno in (*SHORT, errno.ENOSPC) and not live_processes():
            self.call = None
            self.give_up(call.id, error.strerror or "")
            return
        self.kept.add(b"bash: cannot start: %b\n" % (error.strerror or "").encode())
        self.finish(call, b"ended", 126)

    def run_queued(self, call: Call) -> None:
        """Have bash read the command that is queued. It may find the file full, or the policy's."""
        assert self.queued is not None and self.terminal is not None
        command, self.queued = self.queued, None
        self.begun, self.born = False, newest_process()
        try:
            self.terminal.set_modes()  # whatever the last program has left them
            posix.ftruncate(self.script, 0)
            write_at(self.script, command, 0)
            self.terminal.type(RUN_SCRIPT)
        except OSError as error:
            self.kept.add(b"bash: %b\n" % (error.strerror or "").encode())
            self.running = False
            self.finish(call, b"done", 126)

    def poll(self) -> None:
        """Listen to the terminal, and wait for it to take what is typed. One that nobody has open any more is listened
        to anew with each question: it would always be ready."""
        if self.terminal:
            events = select.POLLIN | (select.POLLOUT if self.terminal.unsent else 0)
            self.polled = self.terminal.descriptor
            self.commands.poll.register(self.polled, events)

    def ready(self) -> None:
        """Its terminal has something to say, or takes more of what is typed."""
        if not self.terminal:
            return
        if self.terminal.unsent:
            self.terminal.send()
            self.poll()
        for _ in range(READS):
            try:
                data = self.terminal.read()
            except BlockingIOError:
                return
            if data is None:
                self.commands.poll.unregister(self.polled)
                self.polled = -1
                return
            self.hear(data)

    def hear(self, data: bytes) -> None:
        """Take the marks out of what was written."""
        if self.call:
            self.call.heard = time.monotonic()
            self.call.settle_s = SETTLE_S
            self.call.look_at = self.call.heard + SETTLE_S
        data, self.held = self.held + data, b""
        while (start := data.find(self.mark)) >= 0:
            end = data.find(b"\a", start, start + MAX_MARK)
            if end < 0 and len(data) - start < MAX_MARK:
                break
            self.kept.add(data[:start])
            self.marked(data[start + len(self.mark) : end] if end >= 0 else b"")
            data = data[end + 1 if end >= 0 else start + len(self.mark) :]
        begun = data.rfind(b"\x1b", max(0, len(data) - MAX_MARK))
        if begun >= 0:
            data, self.held = data[:begun], data[begun:]
        self.kept.add(data)

    def marked(self, said: bytes) -> None:
        """A command begins, or a prompt says how the last one ended."""
        if said == b"+":
            self.running = self.begun = True
        elif not said.isdigit():
            pass  # it is not bash that wrote it
        elif self.queued is not None and self.call:
            self.prompted = True
            self.run_queued(self.call)
        else:
            self.prompted, self.running = True, False
            if self.call and not self.call.timed_out:
                self.finish(self.call, b"done", int(said))

    def ended(self, exit_code: int) -> None:
        """Its bash is gone."""
        while self.polled >= 0:
            before = self.kept.total
            self.ready()
            if self.kept.total == before:
                break
        self.close()
        self.running, self.queued = False, None
        if self.call is None:
            self.lost = True
        elif not self.call.timed_out:
            self.finish(self.call, b"ended", exit_code)

    def close(self) -> None:
        if self.polled >= 0:
            self.commands.poll.unregister(self.polled)
        if self.terminal:
            self.terminal.close()
            posix.close(self.script)
        self.terminal, self.pid, self.script, self.polled = None, -1, -1, -1

    def clocks(self) -> list[float]:
        """When there is something to do unasked (`time.monotonic`)."""
        call = self.call
        if call is None:
            return []
        return [call.kill_at or min(call.deadline, call.until or call.heard + call.quiet_s, call.look_at)]

    def check_clocks(self) -> None:
        call, now = self.call, time.monotonic()
        if call is None:
            return
        if call.timed_out or now >= call.deadline:
            self.end_command(call, now)
        elif now >= (call.until or call.heard + call.quiet_s):
            self.finish(call, b"running" if self.running else b"done", 0)
        elif now >= call.look_at:
            call.settle_s = min(MAX_SETTLE_S, 2 * call.settle_s)
            call.look_at = now + call.settle_s
            self.look(call)

    def look(self, call: Call) -> None:
        """It is silent: whoever asked after the background is told, and so is what waits for input. A bash that reads
        its terminal before it has begun the command does not wait for more."""
        if self.polled < 0:
            self.poll()
        if not self.running:
            if self.kept.total or self.held or live_processes().keys() <= {self.pid}:
                self.finish(call, b"done", 0)
        elif self.terminal and self.terminal.waits_for_input(self.pid, but=-1 if self.begun else self.pid):
            self.finish(call, b"waiting", 0)

    def end_command(self, call: Call, now: float) -> None:
        """Its time is over: all that it started is ended, and the shell itself where that goes on with it."""
        if not call.timed_out:
            call.timed_out, call.kill_at = True, now + TERM_GRACE_S
            call.deadline = call.kill_at + PROMPT_GRACE_S
            if not self.running:  # nothing but background output was waited for
                self.finish(call, b"done", 0)
                return
            self.interrupt(_signal.SIGINT)
            self.commands.signal_tree(self.pid, self.born, _signal.SIGTERM, but_root=True)
        elif now >= call.kill_at:
            call.kills += 1
            left = self.commands.kill_tree(self.pid, self.born, call.kills, but_root=True)
            call.kill_at = now + KILL_AGAIN_S
            if left:
                return
            if self.pid < 0 or not self.running:
                self.finish(call, b"done" if self.pid >= 0 else b"ended", 0)
            elif now >= call.deadline:
                self.interrupt(_signal.SIGKILL)

    def interrupt(self, number: int) -> None:
        if self.pid >= 0:
            try:
                posix.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def finish(self, call: Call, state: bytes, exit_code: int) -> None:
        """Answer the host. What is said from here on belongs to the next answer."""
        if not self.held.startswith(self.mark[: len(self.held)]):
            self.kept.add(self.held)
            self.held = b""
        kept, self.kept = self.kept, Kept(self.keep)
        self.call = None
        self.spent_s += time.monotonic() - call.started
        self.reply(call, state, exit_code, kept)

    def reply(self, call: Call, state: bytes, exit_code: int, kept: Kept) -> None:
        fields = {
            b"state": state,
            b"exit": b"%d" % exit_code,
            b"timed_out": b"%d" % call.timed_out,
            b"duration": b"%.6f" % (time.monotonic() - call.started),
            b"stdout": b"%d" % kept.total,
        }
        self.answer(call.id, fields, kept.both())
