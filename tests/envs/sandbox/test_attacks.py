"""Every attack of `bench/attacks.py` fails on every backend; every limit holds, and is what stops the command."""

import dataclasses

import pytest

from bench import escapes
from bench.attacks import ATTACKS, BOMBS, COMMANDS, SECRET, one_command, usable
from sandboxrl.envs.sandbox.contract import CONTRACT
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import Limits

IN_THE_CONTRACT = {
    # clause of the contract: attacks that it repeats, with more cases; they are left to it
    "files that are none": [
        "answer: link to the password file", "answer: link to the environment", "answer: FIFO", "answer: folder",
        "answer: socket", "answer: link to a device", "answer: huge file",
    ],
    "links in paths": ["write through planted links"],
    "files in and out": ["odd file names"],
    "commands of any length and content": ["a command of 200 kB"],
    "the time limit": [
        "ignore the timeout", "outlive the timeout by setsid", "outlive the timeout by a double fork",
        "outlive the timeout without environment",
    ],
    "background processes": ["hold the output"],
    "bounded output": ["write output without end"],
}  # fmt: skip
LEFT = (ATTACKS | BOMBS).keys() - COMMANDS.keys() - {name for names in IN_THE_CONTRACT.values() for name in names}
SMALL = Limits(memory_bytes=768 << 20, disk_bytes=256 << 20, processes=128)


def test_every_attack_of_one_command_fails(machine, monkeypatch):
    monkeypatch.setenv(SECRET, "1")

    async def body(box):
        failed = {}
        for name in COMMANDS:
            try:
                await ATTACKS[name](box)
            except AssertionError as error:
                failed[name] = str(error)
        assert failed == {}
        await usable(box)

    machine.run(body, kept=False, limits=SMALL)  # opened while the secret is there to be found


def test_every_attack_of_the_second_list_fails(machine):
    async def body(box):
        failed = {}
        for name, (command, expected) in escapes.COMMANDS.items():
            try:
                await one_command(command, expected)(box)
            except AssertionError as error:
                failed[name] = str(error)
        assert failed == {}
        await usable(box)

    machine.run(body, limits=SMALL)


@pytest.mark.parametrize("name", sorted(LEFT))
def test_an_attack_fails(machine, name):
    async def body(box):
        await (ATTACKS | BOMBS)[name](box)
        if name != "remove the system":
            await usable(box)

    machine.run(body, limits=SMALL)


def test_there_are_enough_of_them_and_none_is_forgotten():
    assert len(ATTACKS) + len(BOMBS) >= 94
    assert IN_THE_CONTRACT.keys() <= CONTRACT.keys()
    assert {name for names in IN_THE_CONTRACT.values() for name in names} <= (ATTACKS | BOMBS).keys()
    assert len(escapes.COMMANDS) >= 60


MIB = 1 << 20
CONTROLS = {
    # limit: (too little, enough, a command that ends with 0 only when it gets what it asks for)
    "memory_bytes": (352 * MIB, 1024 * MIB, "python3 -c 'import time; a = bytearray(500 * 10 ** 6); time.sleep(1)'"),
    "processes": (16, 64, "for i in $(seq 30); do sleep 1 & done 2>/dev/null; test $(jobs -p | wc -l) = 30"),
    "disk_bytes": (64 * MIB, 256 * MIB, "head -c 128M /dev/zero > big"),
    "open_files": (64, 256, "python3 -c 'a = [open(\"/dev/null\") for _ in range(100)]'"),
    "file_bytes": (10 * MIB, 100 * MIB, "head -c 20M /dev/zero > big"),
    "output_bytes": (1000, 10_000, None),
    "cpus": (0.5, 1.5, None),
}


@pytest.mark.parametrize("limit", [field.name for field in dataclasses.fields(Limits)])
def test_a_limit_holds_and_is_what_stops_the_command(machine, limit):
    too_little, enough, command = CONTROLS[limit]
    if limit == "cpus" and machine.call(lambda: open_backend(machine.config()).describe_limits()["cpus"])[:3] == "NOT":
        pytest.skip("this user has no control groups: the backend says that processor time is not limited")
    busy = (
        "import os, time\nend = time.time() + 1.5\nfor _ in range(2):\n    if os.fork() == 0:\n"
        "        while time.time() < end: pass\n        os._exit(0)\nfor _ in range(2): os.wait()\n"
        "print(sum(os.times()[2:4]))"
    )

    async def body(box):
        if limit == "output_bytes":
            return len((await box.exec("seq 1000")).stdout) == len("".join(f"{n}\n" for n in range(1, 1001)))
        if limit == "cpus":
            return float((await box.exec(f"python3 -c '{busy}'")).stdout) > 1
        return (await box.exec(command, timeout_s=60)).exit_code == 0

    small_disk = {} if limit == "disk_bytes" else {"disk_bytes": 64 * MIB}
    assert not machine.run(body, limits=Limits(**{**small_disk, limit: too_little}))
    if limit != "cpus":  # a busy machine may give less than is allowed
        assert machine.run(body, limits=Limits(**{**small_disk, limit: enough}))


def test_each_backend_says_how_each_limit_is_held(machine):
    said = machine.call(lambda: open_backend(machine.config()).describe_limits())
    assert set(said) == {field.name for field in dataclasses.fields(Limits)} | {"network"}
    held = machine.call(lambda: open_backend(machine.config(network="full")).describe_limits())
    assert held["network"].startswith("NOT HELD")
