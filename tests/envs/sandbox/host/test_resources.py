"""What a sandbox says it has used: counted where the machine counts, None where nobody does."""

import asyncio

import pytest

from sandboxrl.envs.sandbox.host.resources import counted, groups_of_container
from sandboxrl.envs.sandbox.protocol import Limits, Resources, SandboxError

WORK = """python3 -c "
import time
held = bytearray(200 << 20)
while time.process_time() < 0.4: pass" & for i in 1 2 3 4 5 6 7 8; do sleep 0.5 & done; wait"""


def test_what_ran_is_counted(machine):
    async def body(box):
        before = await box.resources()
        assert (await box.exec(WORK)).exit_code == 0
        used = await box.resources()
        assert before.cpu_s + 0.3 < used.cpu_s < 20
        assert 200 << 20 <= used.peak_memory_bytes < 1 << 30
        assert used.peak_processes >= 9 and used.oom_kills == 0
        if machine.drops:
            assert used.throttled_s is None
            assert (before.peak_memory_bytes, before.peak_processes) == (None, None), "nothing was seen yet, not 0"

    machine.run(body)


def test_a_program_killed_for_memory_is_counted(machine):
    async def body(box):
        await box.exec("python3 -c 'a = []\nwhile True: a.append(bytearray(10 ** 7))'", timeout_s=60)
        used = await box.resources()
        assert used.oom_kills == 1 and used.peak_memory_bytes > 300 << 20

    machine.run(body, limits=Limits(memory_bytes=400 << 20, disk_bytes=100 << 20))


def test_what_was_known_outlives_a_sandbox_that_ended(machine):
    async def body(box):
        await box.exec(WORK)
        known = await box.resources()
        box.send(b"\xff" * 64)
        with pytest.raises(SandboxError):
            while True:
                await box.exec("true")
                await asyncio.sleep(0.01)
        assert (await box.resources()).peak_memory_bytes >= known.peak_memory_bytes

    machine.run(body)


VERSION_2 = {
    "memory.peak": "5000\n",
    "memory.events": "low 0\noom 3\noom_kill 2\n",
    "pids.peak": "7\n",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1\nthrottled_usec 250000\n",
}
VERSION_1 = {
    "memory": {"memory.max_usage_in_bytes": "5000\n", "memory.oom_control": "oom_kill_disable 0\noom_kill 2\n"},
    "pids": {"pids.current": "3\n"},
    "cpu": {"cpu.stat": "nr_throttled 2\nthrottled_time 250000000\n"},
}


def test_both_versions_are_read_and_what_is_not_counted_is_none(tmp_path):
    for folder, files in {"two": VERSION_2, **VERSION_1}.items():
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    assert counted(dict.fromkeys(VERSION_1, tmp_path / "two")) == Resources(5000, 1.5, 0.25, 2, 7)
    assert counted({name: tmp_path / name for name in VERSION_1}) == Resources(5000, None, 0.25, 2, None)
    assert counted({"memory": tmp_path / "gone"}) == counted({}) == Resources()
    assert groups_of_container(1, "no such container") == groups_of_container(-1, "") == {}
