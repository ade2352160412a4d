"""Kinds of mischief that once worked: PID 1 out of reach, a time limit that ends everything, limits that hold."""

import asyncio

import pytest

from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import Limits

MIB = 1 << 20

DEAD_LEADER = """
import ctypes, threading, time
def work():
    for _ in range(150):
        open('/tmp/beat', 'w').write(str(time.time())); time.sleep(0.1)
threading.Thread(target=work).start(); time.sleep(0.2); ctypes.CDLL(None).syscall(SYS_exit, 0)
""".replace("SYS_exit", "60 if __import__('os').uname().machine == 'x86_64' else 93")

FORK_CHAIN = """
import os, time
end = time.time() + 20
while time.time() < end:
    if os.fork():
        os._exit(0)
    open('/tmp/beat', 'w').write(str(time.time()))
"""


@pytest.mark.parametrize("source", [DEAD_LEADER, FORK_CHAIN], ids=["a dead first thread", "a chain of forks"])
def test_a_time_limit_ends_everything(machine, source):
    async def body(box):
        await box.write({"z.py": source.encode()})
        result = await box.exec("python3 z.py & sleep 30", timeout_s=1.5)
        assert result.timed_out and result.duration_s < 8
        last = (await box.exec("cat /tmp/beat")).stdout
        await asyncio.sleep(1)
        assert last and (await box.exec("cat /tmp/beat")).stdout == last, "it beats on"

    machine.run(body)


SERVER = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def worker():
    if os.fork() == 0:
        time.sleep(300)
        os._exit(0)
worker()
while True:
    time.sleep(0.05)
    if os.path.exists('/tmp/reload'):
        os.remove('/tmp/reload'); worker()
"""


def test_a_time_limit_spares_the_workers_of_an_earlier_server(machine):
    async def body(box):
        await box.write({"server.py": SERVER.encode()})
        await box.exec("setsid python3 server.py >/dev/null 2>&1 & sleep 0.3")
        result = await box.exec("touch /tmp/reload; sleep 60", timeout_s=1)
        assert result.timed_out
        assert (await box.exec("ps -e -o args | grep -c '^python3 server.py'")).stdout == b"3\n"

    machine.run(body)


SEGMENTS = """
import ctypes, sys
c = ctypes.CDLL(None, use_errno=True); c.shmat.restype = ctypes.c_void_p
for size in (64 << 20, 1 << 20, 65536, 8192):
    for _ in range(4000):
        key = c.shmget(0, ctypes.c_size_t(size), 0o1600)
        if key < 0: break
        at = c.shmat(key, None, 0)
        ctypes.memset(at, 1, size); c.shmdt(ctypes.c_void_p(at))
for _ in range(32000):
    if c.msgget(0, 0o1600) < 0 and c.semget(0, 32000, 0o1600) < 0: break
"""
FILES = """
import os
for place in '/testbed /tmp /dev/shm /home/user /run /dev /var/tmp /sys/fs/cgroup /dev/mqueue'.split():
    try:
        with open(place + '/full', 'wb') as file:
            while True: file.write(bytes(1 << 20))
    except OSError: pass
    try:
        for n in range(10 ** 6): os.mkdir(f'{place}/d{n}')
    except OSError: pass
"""


@pytest.mark.parametrize("source", [SEGMENTS, FILES], ids=["System V objects", "files and folders everywhere"])
def test_what_outlives_its_maker_leaves_room_for_pid_1(machine, source):
    async def body(box):
        await box.write({"fill.py": source.encode()})
        for _ in range(2):
            await box.exec("python3 fill.py", timeout_s=60)
        assert (await box.exec("echo alive | cat")).stdout == b"alive\n"

    machine.run(body, limits=Limits(memory_bytes=400 * MIB, disk_bytes=64 * MIB))


MEMORY_FILES = """
import os, time
data, kept = b'x' * (1 << 20), []
for _ in range(20):
    kept.append(os.memfd_create('a'))
    for _ in range(64): os.write(kept[-1], data)
print('all of it'); time.sleep(1)
"""
BEHIND_A_DEAD_LEADER = """
import ctypes, os, threading, time
def work():
    time.sleep(0.5); held = bytearray(700 << 20); time.sleep(2); print('all of it', flush=True)
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
"""


@pytest.mark.parametrize("source", [MEMORY_FILES, BEHIND_A_DEAD_LEADER], ids=["memory files", "a dead first thread"])
def test_memory_that_no_first_thread_maps_is_held(machine, source):
    async def body(box):
        await box.write({"x.py": source.encode()})
        assert b"all of it" not in (await box.exec("python3 x.py; sleep 3")).stdout

    machine.run(body, limits=Limits(memory_bytes=400 * MIB, disk_bytes=64 * MIB))


SOCKETS = """
import socket
total, kept, listener, data = 0, [], socket.socket(), b'x' * (1 << 20)
listener.bind(('127.0.0.1', 0)); listener.listen(1000)
for _ in range(40):
    one = socket.socket(); one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    one.connect(listener.getsockname()); other, _ = listener.accept(); one.setblocking(False); kept += [one, other]
    try:
        while True: total += one.send(data)
    except BlockingIOError: pass
print(total >> 20)
"""


def test_socket_buffers_are_held_or_said_not_to_be(machine):
    said = machine.call(lambda: open_backend(machine.config()).describe_limits()["memory_bytes"])

    async def body(box):
        await box.write({"x.py": SOCKETS.encode()})
        result = await box.exec("python3 x.py", timeout_s=20)
        return not result.stdout or int(result.stdout) < 160

    held = machine.run(body, limits=Limits(memory_bytes=400 * MIB, disk_bytes=64 * MIB))
    assert held or "NOT HELD: socket buffers" in said


def test_terminals_are_the_sandboxes_own(machine):
    if machine.backend != "bubblewrap":
        pytest.skip("Docker mounts its own")

    async def body(box):
        count = "import os\nn = 0\ntry:\n  while True: os.openpty(); n += 1\nexcept OSError: print(n)"
        assert int((await box.exec(f"python3 -c '{count}'")).stdout) <= 64

    machine.run(body)


@pytest.mark.docker
def test_nothing_of_the_hosts_disk_is_open_to_a_container(machine):
    if machine.backend != "docker":
        pytest.skip("docker only")

    async def body(box):
        result = await box.exec(
            "for f in hostname hosts resolv.conf; do head -c 1M /dev/zero > /etc/$f && echo open; done"
        )
        assert result.stdout == b""
        assert (await box.exec("hostname; getent hosts localhost | head -1; cat /proc/mounts")).stdout.startswith(
            b"sandbox\n"
        )

    machine.run(body)
