"""Network modes on real sandboxes: nothing, the public internet only, and everything when asked for."""

import asyncio
import contextlib
import ipaddress
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.sandbox.network.links import PREFIX, Bridge
from sandboxrl.envs.sandbox.network.packet_filter import MOST_NEIGHBOURS, NEAR
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, SandboxConfig, SandboxDied
from tests.envs.conftest import in_a_child, in_a_network_of_its_own


@contextlib.contextmanager
def host_service():
    """A port of this host that greets whoever connects."""
    with socket.create_server(("0.0.0.0", 0)) as server:

        def greet():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"greetings")

        threading.Thread(target=greet, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def addresses_of_this_host() -> list[str]:
    return subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()


def reached(*targets: tuple[str, int]) -> str:
    """A command that prints the targets that answer."""
    program = (
        f"import socket\nfor target in {targets!r}:\n    s = socket.socket()\n    s.settimeout(3)\n"
        "    if s.connect_ex(target) == 0: print(target[0])"
    )
    return f"python3 -c {shlex.quote(program)}"


def test_none_is_the_default_and_reaches_nothing(machine):
    with host_service() as port:
        near = [(address, port) for address in addresses_of_this_host() if ":" not in address]

        async def body(box):
            return (await box.exec(reached(("127.0.0.1", port), *near))).stdout

        assert machine.config().network == "none"
        assert machine.run(body) == b""


def test_full_is_the_network_of_this_host(machine):
    with host_service() as port:

        async def body(box):
            return (await box.exec(reached(("127.0.0.1", port)))).stdout

        assert machine.run(body, network="full") == b"127.0.0.1\n"


PUBLIC = "198.51.100.2"
"""Of a range for documentation: it leads nowhere, so that a test may answer there, and it is not filtered."""
SERVE = """
import socket, sys
with socket.create_server(("0.0.0.0", {port})) as server:
    print("listening", flush=True)
    while True:
        server.accept()[0].close()
"""


@contextlib.contextmanager
def world():
    """A machine beyond this one that answers on PUBLIC and in each range that is near: (port, near addresses). It is a
    network namespace, linked and routed to, and gone with its one process; the link is taken away at once."""
    blocks = [ipaddress.ip_network(block) for block in NEAR]
    near = [str(block[block.num_addresses // 2 + 7]) for block in blocks if not block.is_loopback | block.is_multicast]
    link, here, port = f"world{os.getpid()}", "198.51.100.1", 8000
    command = ["unshare", "--net", sys.executable, "-c", SERVE.format(port=port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout.readline() == b"listening\n"
            inside = ["nsenter", f"--net=/proc/{server.pid}/ns/net"]
            lines = [f"link add {link} type veth peer name eth0 netns {server.pid}", f"link set {link} up"]
            lines += [f"addr add {here} peer {PUBLIC} dev {link}"]
            lines += [f"route add {address} via {PUBLIC}" for address in near]
            subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
            lines = ["link set lo up", "link set eth0 up", f"addr add {PUBLIC} peer {here} dev eth0"]
            lines += [f"addr add {address} dev lo" for address in near] + [f"route add default via {here}"]
            subprocess.run([*inside, "ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
            said = subprocess.run(shlex.split(reached((PUBLIC, port), *((a, port) for a in near))), capture_output=True)
            assert said.stdout.decode().split() == [PUBLIC, *near], "this machine reaches all of them"
            yield port, near
        finally:
            subprocess.run(["ip", "link", "delete", link])  # the kernel would do it some time after the process's end
            server.kill()


@pytest.fixture
def egress(machine):
    """A machine whose sandboxes get the network `egress`."""
    if os.geteuid() != 0 or machine.drops:
        pytest.skip("packet filter rules need root")
    for program in ("ip", "iptables"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")
    try:
        machine.run(nothing, network="egress")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    return machine


async def nothing(*boxes):
    """A body that needs its sandboxes only to start."""


async def address_of(box) -> str:
    program = f"import socket; s = socket.socket(type=2); s.connect(('{PUBLIC}', 9)); print(s.getsockname()[0])"
    return (await box.exec(f"python3 -c {shlex.quote(program)}")).stdout.decode().strip()


def reaches_the_public_alone(egress):
    with host_service() as port, world() as (far_port, near):
        here = [(address, port) for address in ["127.0.0.1", *addresses_of_this_host()] if ":" not in address]

        async def body(box):
            assert (await box.exec(reached(*here))).stdout == b"", "this machine"
            assert (await box.exec(reached(*((address, far_port) for address in near)))).stdout == b"", "what is near"
            assert (await box.exec(reached((PUBLIC, far_port)))).stdout.decode() == f"{PUBLIC}\n"
            assert (await box.exec("grep -v ' lo$' /proc/net/if_inet6")).stdout == b"", "no way round by IPv6"

        egress.run(body, network="egress")


def test_egress_reaches_the_public_and_nothing_near(egress):
    reaches_the_public_alone(egress)


ASK_RESOLVER = """
import socket, struct
server = next(line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver"))
query = struct.pack(">6H", 4711, 0x100, 1, 0, 0, 0) + b"\\x09localhost\\0" + struct.pack(">2H", 1, 1)
s = socket.socket(type=2)
s.settimeout(5)
s.sendto(query, (server, 53))
print(struct.unpack(">H", s.recv(512)[:2])[0])
"""


def test_egress_resolves_names(egress):
    if subprocess.run([sys.executable, "-c", ASK_RESOLVER], capture_output=True).stdout != b"4711\n":
        pytest.skip("this machine's own name server does not answer")

    async def body(box):
        asked = await box.exec(f"python3 -c {shlex.quote(ASK_RESOLVER)}")
        assert asked.stdout == b"4711\n", asked

    egress.run(body, network="egress")


def do_not_reach_each_other(egress):
    async def body(one, other):
        serve = shlex.quote(SERVE.format(port=8000))
        await one.exec(f"python3 -c {serve} >/testbed/said 2>&1 & until grep -q l /testbed/said; do sleep 0.01; done")
        address = await address_of(one)
        socket.create_connection((address, 8000), timeout=5).close()  # it does listen there
        assert (await one.exec(reached((address, 8000)))).stdout.decode() == f"{address}\n"
        assert (await other.exec(reached((address, 8000)))).stdout == b""

    egress.run(body, boxes=2, network="egress")


def test_egress_sandboxes_do_not_reach_each_other(egress):
    do_not_reach_each_other(egress)


def test_egress_leaves_no_power_over_the_network_inside(egress):
    attempts = """
import fcntl, socket, struct
def attempt(name, function):
    try: function()
    except OSError: pass
    else: print(name)
plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
attempt("address", lambda: fcntl.ioctl(plain, 0x8916, struct.pack("16sHH4s8x", b"eth0", 2, 0, b"\\xc0\\xa8\\0\\1")))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("setting", lambda: open("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "r+").write("0"))
print("done")
"""

    async def body(box):
        assert (await box.exec(f"python3 -c {shlex.quote(attempts)} 2>&1")).stdout == b"done\n"

    egress.run(body, network="egress")


@pytest.fixture
def bubblewrap(egress):
    if egress.backend != "bubblewrap":
        pytest.skip("bubblewrap only")
    return egress


def test_egress_needs_no_docker(bubblewrap):
    def body():
        assert subprocess.run(["iptables", "-S", "DOCKER-USER"], capture_output=True).returncode != 0
        reaches_the_public_alone(bubblewrap)

    in_a_network_of_its_own(body)


def test_what_docker_lets_through_does_not_come_before_the_filter(bubblewrap):
    """Docker, started later, puts its own rules in front of all, and then the chain DOCKER-USER in front of those."""

    def body():
        bubblewrap.run(nothing, network="egress")
        docker = "iptables -I FORWARD -j ACCEPT; iptables -D FORWARD -j DOCKER-USER; iptables -I FORWARD -j DOCKER-USER"
        subprocess.run(["sh", "-ec", docker], check=True)
        reaches_the_public_alone(bubblewrap)

    in_a_network_of_its_own(body)


def test_ports_of_the_bridge_are_apart_without_the_filter(bubblewrap):
    """What passes within a bridge meets packet filter rules only where this setting is on, as Docker makes it."""

    def body():
        for setting in Path("/proc/sys/net/bridge").glob("bridge-nf-call-iptables"):
            setting.write_text("0")
        do_not_reach_each_other(bubblewrap)

    in_a_network_of_its_own(body)


def test_the_kernel_has_room_for_the_neighbours_of_many(bubblewrap):
    """Two for each sandbox, in one table for all namespaces: 512 sandboxes fill 1024 places, and some get no answer."""
    room = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
    if not room.exists():
        pytest.skip("this machine is a network namespace of another, which alone can make room")
    before = room.read_text()
    try:
        room.write_text("1024")
        Bridge.open()
        assert int(room.read_text()) == MOST_NEIGHBOURS
        room.write_text(f"{2 * MOST_NEIGHBOURS}")
        Bridge.open()
        assert int(room.read_text()) == 2 * MOST_NEIGHBOURS, "what is larger is left alone"
    finally:
        room.write_text(before)


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex() if name.startswith(PREFIX)}


def wait_until_gone(names: set[str]) -> None:
    """The kernel takes a network namespace apart in its own time."""
    deadline = time.monotonic() + 10
    while left := names & links():
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def test_a_closed_sandbox_leaves_no_link(bubblewrap):
    async def its_links(*boxes):
        before = await asyncio.gather(*map(address_of, boxes))
        assert len(set(before)) == len(links()) == 4
        return links()

    in_a_network_of_its_own(lambda: wait_until_gone(bubblewrap.run(its_links, boxes=4, network="egress")))


def test_a_killed_owner_leaves_no_link(bubblewrap):
    def body():
        async def die(*boxes):
            os.write(writer, " ".join(links()).encode())
            os.kill(os.getpid(), signal.SIGKILL)

        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                bubblewrap.run(die, boxes=2, network="egress")
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as said:
            names = set(said.read().split())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert len(names) == 2
        wait_until_gone(names)

    in_a_network_of_its_own(body)


def test_two_processes_give_no_address_twice(bubblewrap):
    """Both try the same addresses in the same order, as they would by chance."""

    def body():
        with sleepers(12) as pids:
            Bridge.open()

            def half(mine):
                async def attach():
                    await asyncio.gather(*(Bridge.open().attach(pid, range(2, 14)) for pid in mine))

                asyncio.run(attach())

            other = threading.Thread(target=in_a_child, args=[lambda: half(pids[::2])])
            other.start()
            in_a_child(lambda: half(pids[1::2]))
            other.join()
            assert links() == {f"{PREFIX}{number}" for number in range(2, 14)}
            with sleepers(1) as (pid,), pytest.raises(SandboxDied, match="no free address"):
                asyncio.run(Bridge.open().attach(pid, range(2, 14)))
        wait_until_gone(links())

    in_a_network_of_its_own(body)


@contextlib.contextmanager
def sleepers(count):
    """The pids of processes that each have a network namespace of their own."""
    with contextlib.ExitStack() as stack:
        pids = []
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(["unshare", "--net", "sleep", "60"]))
            stack.callback(process.kill)
            pids.append(process.pid)
        here = os.readlink("/proc/self/ns/net")
        while any(os.readlink(f"/proc/{pid}/ns/net") == here for pid in pids):
            time.sleep(0.01)
        yield pids


def test_the_network_of_this_machine_is_never_attached_to(bubblewrap):
    def body():
        with pytest.raises(SandboxDied, match="of its own"):
            asyncio.run(Bridge.open().attach(os.getpid()))

    in_a_network_of_its_own(body)


def test_an_ordinary_user_is_told_what_egress_needs(machine):
    if machine.name != "bubblewrap as an ordinary user":
        pytest.skip("the others may have it")

    def body():
        with pytest.raises(InputError, match="needs root.*sandbox.backend=docker"):
            open_backend(SandboxConfig(network="egress"))

    machine.call(body)


def test_near_ranges_are_networks():
    networks = [ipaddress.ip_network(block) for block in NEAR]
    for address in ("10.1.2.3", "172.31.0.1", "192.168.1.1", "169.254.169.254", "127.0.0.1", "100.64.0.1", "224.0.0.1"):
        assert any(ipaddress.ip_address(address) in network for network in networks), address
    for address in ("1.1.1.1", "172.32.0.1", "93.184.216.34"):
        assert not any(ipaddress.ip_address(address) in network for network in networks), address
