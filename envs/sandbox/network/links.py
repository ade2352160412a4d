"""The way out of a sandbox that no daemon wires: a bridge, and for each sandbox a pair of linked interfaces.

One end is a port of the bridge, isolated from every other port. The other is `eth0` in the sandbox's own network
namespace, set up from outside: nothing inside holds a capability over it. The pair vanishes with the namespace, however
the sandbox ends. Its name is the lease of its address: `sbx7` has the seventh, and the kernel gives a name once.

It asks the kernel directly (rtnetlink): the same through the `ip` program takes five times as long.
"""

import asyncio
import ctypes
import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from sandboxrl.envs.sandbox.network import packet_filter
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, SandboxDied

LOCK = Path("/run/sandboxrl-egress.lock")
PREFIX = "sbx"
SUBNET_BITS = 16
SUBNETS = ("198.18.0.0/16", "198.19.0.0/16", "100.127.0.0/16", "10.213.0.0/16", "172.30.0.0/16", "192.168.0.0/16")
"""The first that this machine has no route into becomes the sandboxes'. None is of the public internet."""
TRIES = 64

NEW_LINK, NEW_ADDRESS, NEW_ROUTE = 16, 20, 24
REQUEST, ACKNOWLEDGE, EXCLUSIVE, CREATE = 0x1, 0x4, 0x200, 0x400
UP = 1
STATION, NAME, MTU, MASTER, LINK_INFO, NAMESPACE = 1, 3, 4, 10, 18, 28
KIND, DATA, PORT_KIND, PORT_DATA = 1, 2, 4, 5
PEER, ISOLATED = 1, 33
ADDRESS, LOCAL = 1, 2
OUTPUT, GATEWAY = 4, 5
MAIN_TABLE, BY_ADMINISTRATOR, UNICAST = 254, 4, 1
READ_ADDRESS = 0x8915
NETWORK_NAMESPACE = 0x40000000


class Bridge:
    """This machine's bridge for sandboxes: one for all runs; it stays."""

    def __init__(self, index: int, gateway: IPv4Address) -> None:
        self._index = index
        self._gateway = gateway
        self._subnet = IPv4Network((gateway, SUBNET_BITS), strict=False)
        self._mtu = packet_filter.mtu()

    @staticmethod
    def open() -> "Bridge":
        """The bridge, behind its filter. Raises BackendUnavailable when this process may not have it."""
        if os.geteuid() != 0:
            raise BackendUnavailable(
                "sandbox.network=egress with bubblewrap needs root, who alone may link a sandbox to a network: run as "
                "root, or use sandbox.backend=docker"
            )
        try:
            with LOCK.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                packet_filter.protect()
                bridge = _find_or_make(packet_filter.OWN_BRIDGE)
                packet_filter.route(bridge._subnet)
        except OSError as error:
            raise BackendUnavailable(
                f"sandbox.network=egress: {error}; inside a container, start that container with --cap-add NET_ADMIN "
                "and a writable /proc/sys, or use sandbox.backend=docker"
            ) from error
        return bridge

    async def attach(self, pid: int, numbers: Sequence[int] = ()) -> None:
        """Give the network namespace of process `pid` an interface, an address and a default route. `numbers` are the
        addresses to try in turn, at random by default. Raises OSError."""
        with ThreadPoolExecutor(1) as thread:  # of its own: it enters the namespace and ends there
            await asyncio.get_running_loop().run_in_executor(thread, self._attach, pid, numbers)

    def _attach(self, pid: int, numbers: Sequence[int]) -> None:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/net")):
                raise SandboxDied(f"process {pid} has no network namespace of its own")
            number = self._pair(namespace, numbers or self._random_numbers())
            if ctypes.CDLL(None, use_errno=True).setns(namespace, NETWORK_NAMESPACE) != 0:
                raise OSError(ctypes.get_errno(), "cannot enter the network namespace of a sandbox")
        finally:
            os.close(namespace)
        self._set_up(self._subnet[number])

    def _random_numbers(self) -> list[int]:
        return [2 + secrets.randbelow(self._subnet.num_addresses - 3) for _ in range(TRIES)]

    def _pair(self, namespace: int, numbers: Sequence[int]) -> int:
        """Link the bridge with a namespace; the number of the address that goes with it."""
        inner = _link() + _attribute(NAME, b"eth0\0") + _number(MTU, self._mtu) + _number(NAMESPACE, namespace)
        pair = _attribute(LINK_INFO, _attribute(KIND, b"veth") + _attribute(DATA, _attribute(PEER, inner)))
        port = _attribute(PORT_KIND, b"bridge") + _attribute(PORT_DATA, _attribute(ISOLATED, b"\1"))
        with _kernel() as kernel:
            for number in numbers:
                name = _attribute(NAME, f"{PREFIX}{number}\0".encode())
                place = _number(MTU, self._mtu) + _number(MASTER, self._index)
                try:
                    _ask(kernel, NEW_LINK, CREATE | EXCLUSIVE, _link(UP) + name + place + pair)
                except FileExistsError:  # another sandbox has this number
                    continue
                _ask(kernel, NEW_LINK, 0, _link() + name + _attribute(LINK_INFO, port))
                return number
        raise SandboxDied(f"sandbox.network=egress: no free address in {self._subnet}")

    def _set_up(self, address: IPv4Address) -> None:
        """Called inside the namespace."""
        for setting in Path("/proc/sys/net/ipv6/conf").glob("eth0/disable_ipv6"):  # the filter is of version 4
            setting.write_text("1")
        index = socket.if_nametoindex("eth0")
        route = struct.pack("8BI", socket.AF_INET, 0, 0, 0, MAIN_TABLE, BY_ADMINISTRATOR, 0, UNICAST, 0)
        route += _attribute(GATEWAY, self._gateway.packed) + _number(OUTPUT, index)
        with _kernel() as kernel:
            _ask(kernel, NEW_ADDRESS, CREATE | EXCLUSIVE, _address(index, address))
            _ask(kernel, NEW_LINK, 0, _link(UP, index))
            _ask(kernel, NEW_ROUTE, CREATE | EXCLUSIVE, route)


def _find_or_make(name: str) -> Bridge:
    """Called by one process at a time."""
    with _kernel() as kernel, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        if name not in {found for _, found in socket.if_nameindex()}:
            kind = _attribute(LINK_INFO, _attribute(KIND, b"bridge"))
            fixed = _attribute(STATION, b"\2" + secrets.token_bytes(5))  # else it changes as ports come and go
            called = _attribute(NAME, name.encode() + b"\0")
            _ask(kernel, NEW_LINK, CREATE | EXCLUSIVE, _link(UP) + called + fixed + kind)
        index = socket.if_nametoindex(name)
        try:
            answer = fcntl.ioctl(plain, READ_ADDRESS, struct.pack("256s", name.encode()))
            gateway = IPv4Address(answer[20:24])
        except OSError:  # it has none yet
            gateway = _free_subnet()[1]
            _ask(kernel, NEW_ADDRESS, CREATE | EXCLUSIVE, _address(index, gateway))
    return Bridge(index, gateway)


def _free_subnet() -> IPv4Network:
    taken = [block for _, block in packet_filter.routes() if block.prefixlen]
    taken += [IPv4Network(address) for address in packet_filter.resolvers()]
    for subnet in map(IPv4Network, SUBNETS):
        if not any(subnet.overlaps(block) for block in taken):
            return subnet
    raise BackendUnavailable(f"sandbox.network=egress: this machine has routes into each of {', '.join(SUBNETS)}")


def _kernel() -> socket.socket:
    """A way to ask about the network namespace that this thread is in."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def _ask(kernel: socket.socket, kind: int, flags: int, body: bytes) -> None:
    """Raises OSError as the kernel refuses."""
    kernel.sendall(struct.pack("IHHII", 16 + len(body), kind, REQUEST | ACKNOWLEDGE | flags, 0, 0) + body)
    (error,) = struct.unpack_from("i", kernel.recv(65536), 16)
    if error:
        raise OSError(-error, os.strerror(-error))


def _link(flags: int = 0, index: int = 0) -> bytes:
    return struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _address(index: int, address: IPv4Address) -> bytes:
    head = struct.pack("4BI", socket.AF_INET, SUBNET_BITS, 0, 0, index)
    return head + _attribute(LOCAL, address.packed) + _attribute(ADDRESS, address.packed)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("I", value))
