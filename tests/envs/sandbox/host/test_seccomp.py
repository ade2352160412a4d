"""The system call policy: its BPF program, run here by a small interpreter, decides as the policy says."""

import errno
import struct

import pytest

from sandboxrl.envs.sandbox.host.seccomp import (
    ALLOWED,
    DENIED,
    NEWEST_KNOWN,
    PROTOCOLS,
    SOCKET_FAMILIES,
    bpf,
    docker_profile,
)

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
ALLOW, KILL = 0x7FFF0000, 0x80000000
READ = {"x86_64": 0, "aarch64": 63}
CALLS = {"clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "ioctl": (16, 29), "personality": (135, 92),
         "socketpair": (53, 199)}  # fmt: skip


def decide(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would return for a system call."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, counter = 0, 0
    while True:
        code, if_true, if_false, value = instructions[counter]
        counter += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x06:
            return value
        else:
            taken = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[code]
            counter += if_true if taken else if_false


def refused(number: int) -> int:
    return 0x50000 | number


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_decides_as_the_policy_says(machine):
    column, arch = MACHINES[machine]
    program = bpf(machine)

    def call(name_or_number, *arguments):
        number = CALLS[name_or_number][column] if isinstance(name_or_number, str) else name_or_number
        return decide(program, arch, number, *arguments)

    denied = {numbers[column] for numbers in DENIED.values()} - {None}
    for number in denied:
        assert call(number) == refused(errno.EPERM)
    special = {numbers[column] for numbers in CALLS.values()} | {53, 199}
    for number in set(range(NEWEST_KNOWN + 1)) - denied - special:
        assert call(number) == ALLOW
    assert call(READ[machine]) == ALLOW
    for number in (NEWEST_KNOWN + 1, 0x40000000 + READ[machine], 0xFFFFFFFF):
        assert call(number) == refused(errno.ENOSYS)
    assert decide(program, 0x40000003, READ[machine]) == KILL, "another instruction set"

    assert call("clone3") == refused(errno.ENOSYS)
    assert call("clone", 0x01200011) == ALLOW, "fork"
    assert call("clone", 0x4111) == ALLOW, "posix_spawn"
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert call("clone", flag | 17) == refused(errno.EPERM)
    for family in range(64):
        assert call("socket", family) == (ALLOW if family in SOCKET_FAMILIES else refused(errno.EAFNOSUPPORT))
    for protocol in range(300):
        answer = ALLOW if protocol in PROTOCOLS else refused(errno.EPROTONOSUPPORT)
        assert call("socket", 2, 1, protocol) == call("socket", 10, 2, protocol) == answer
        assert call("socket", 1, 1, protocol) == ALLOW
    assert call("socketpair", 1) == ALLOW and call("socketpair", 16) == refused(errno.EAFNOSUPPORT)
    for request, answer in ((0x5412, refused(errno.EPERM)), (0x1_0000_5412, refused(errno.EPERM)), (0x5413, ALLOW)):
        assert call("ioctl", 1, request) == answer
    assert call("personality", 0xFFFFFFFF) == ALLOW and call("personality", 0x0400000) == refused(errno.EPERM)


def test_an_unknown_machine_is_refused():
    with pytest.raises(KeyError):
        bpf("riscv64")


def test_docker_gets_the_same_policy():
    profile = docker_profile()
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert not allowed & (DENIED.keys() | {"clone3", "fallocate"})
    assert {"read", "execve", "clone", "socket", "openat", "futex"} <= allowed
    assert not set(ALLOWED) & DENIED.keys() and len(ALLOWED) == len(set(ALLOWED))
    conditional = {"clone", "socket", "socketpair", "personality"}
    for rule in profile["syscalls"]:
        if rule["action"] == "SCMP_ACT_ALLOW" and conditional & set(rule["names"]):
            assert rule["args"], "never without a condition"
