"""What every backend promises (`sandboxrl.envs.sandbox.contract`), on real sandboxes; and that the suite can fail."""

import asyncio
from dataclasses import replace

import pytest

from sandboxrl.envs.sandbox.contract import CONTRACT, NotKept, examine, keep
from sandboxrl.envs.sandbox.own import OwnBackend
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import FileRefused, Limits, Sandbox, SandboxConfig, SandboxDied

LIMITS = Limits(memory_bytes=768 << 20, disk_bytes=256 << 20)


async def output(box: Sandbox, command: str, **options: object) -> bytes:
    result = await box.exec(command, **options)
    assert result.exit_code == 0, result
    return result.stdout


@pytest.mark.parametrize("clause", CONTRACT)
def test_a_backend_keeps_the_contract(machine, clause):
    machine.run_with_backend(lambda backend: keep(clause, backend), kept=True, limits=LIMITS)


def test_every_command_is_ended_before_pid_1_when_memory_is_short(machine):
    async def body(box):
        for _ in range(5):
            scores = (await box.exec("sleep 0.1; cat /proc/{self,1}/oom_score_adj")).stdout.split()
            assert scores[0] == b"1000" and int(scores[1]) < 1000

    machine.run(body)


class Wrapped:
    """Bubblewrap, with one method of its sandboxes changed."""

    name = "wrapped"
    changes: dict = {}

    def __init__(self, config):
        self._inner = open_backend(replace(config, backend="bubblewrap", options={}, limits=LIMITS))

    async def start(self, image=""):
        box = await self._inner.start(image)
        for name, change in self.changes.items():
            setattr(box, name, change(getattr(box, name)))
        return box

    async def close(self):
        await self._inner.close()


def altered(**more):
    """`exec` whose result is changed in some of its facts."""

    def change(method):
        async def run(*words, **options):
            result = await method(*words, **options)
            return replace(result, **{name: make(result) for name, make in more.items()})

        return run

    return change


def fixed(data):
    """`read` that gives back something where it should refuse."""

    def change(method):
        async def read(path, max_bytes=1 << 20):
            try:
                return await method(path, max_bytes)
            except FileRefused:
                return data

        return read

    return change


def does_nothing(method):
    async def nothing(*words, **options):
        return None

    return nothing


def shared(method):
    async def run(command, *words, **options):
        return await method(command.replace("/testbed/secret /tmp/secret", "/etc/passwd"), *words, **options)

    return run


LIARS = {
    # the clause that must notice: what is changed
    "results of commands": {"exec": altered(exit_code=lambda result: max(0, result.exit_code))},
    "a fresh shell in the working directory": {"exec": lambda m: lambda c, cwd="", **o: m(f"cd /tmp; {c}", **o)},
    "variables and limits of a call": {"exec": lambda m: lambda c, env=None, **o: m(c, **o)},
    "the time limit": {"exec": lambda m: lambda c, timeout_s=120.0, **o: m(c, timeout_s=max(timeout_s, 20.0), **o)},
    "many commands at once": {"exec": altered(stdout=lambda result: b"")},
    "bounded output": {"exec": lambda m: lambda c, max_bytes=None, **o: m(c, **o)},
    "background processes": {"exec": altered(background=lambda result: False)},
    "commands of any length and content": {"exec": lambda m: lambda c, **o: m(c[:100_000], **o)},
    "files in and out": {"write": does_nothing},
    "files that are none": {"read": fixed(b"")},
    "links in paths": {"read": fixed(b"")},
    "a full disk": {"write": does_nothing},
    "memory": {"exec": altered(timed_out=lambda result: True)},
    "processes": {"exec": altered(stdout=lambda result: b"3000")},
    "closing": {"close": does_nothing},
    "sandboxes apart": {"exec": shared},
    "folders": {"unpack": does_nothing},
    "large files": {"read_part": altered(size=lambda part: part.size - 1)},
    "what was used": {"resources": altered(cpu_s=lambda used: 1.0)},
    "a shell that stays": {"shell": lambda m: lambda text, **o: m(f"({text}\n)", **o)},
    "snapshots and forks": {"restore": does_nothing},
}


@pytest.mark.parametrize("clause", CONTRACT)
def test_each_clause_can_be_broken(machine, clause):
    if machine.name != "bubblewrap":
        pytest.skip("one backend is enough to lie about")

    async def whole():
        backend = Wrapped(SandboxConfig())
        backend.changes = LIARS[clause]
        try:
            with pytest.raises((NotKept, FileRefused, SandboxDied, TypeError)):
                await keep(clause, backend)
        finally:
            await backend.close()

    asyncio.run(whole())


class Raising(Wrapped):
    changes = {"exec": lambda method: lambda *words, **options: 1 / 0, "read": does_nothing}


def test_a_fault_of_the_users_backend_is_the_machines(machine, caplog):
    if machine.name != "bubblewrap":
        pytest.skip("a backend of one's own stands before any")

    async def whole():
        backend = OwnBackend(Raising(SandboxConfig()), "my.py:Raising")
        box = await backend.start()
        with pytest.raises(SandboxDied, match=r"my.py:Raising: exec\(\): ZeroDivisionError"):
            await box.exec("true")
        with pytest.raises(SandboxDied, match="gave back NoneType, not bytes"):
            await box.read("x")
        await box.close()
        problems = [verdict.problem async for verdict in examine(backend)]
        assert all("ZeroDivisionError" in problem or "NoneType" in problem for problem in problems if problem)
        assert len([problem for problem in problems if problem]) >= len(CONTRACT) - 1
        await backend.close()

    asyncio.run(whole())
    assert "ZeroDivisionError: division by zero" in caplog.text
