"""The filter of the `egress` network: the public internet, and nothing that is near.

A plain network of containers reaches the host's own services, the other machines of its network and the cloud's
metadata address. Here sandboxes are on bridges of their own, one that Docker makes and one of ours
(`envs/sandbox/network/links.py`), and what comes from a bridge passes through two chains: forwarded traffic may not
go to any private, link-local or reserved range (but for the resolver's port 53), and nothing may be opened towards the
host itself. Bridges and rules are shared by all runs of a machine and stay. Rules need root; an ordinary user of Docker
finds the marker root left:

    sudo python -m sandboxrl.envs.sandbox.network
"""

import os
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from sandboxrl.envs.sandbox.protocol import BackendUnavailable

NETWORK = "sandboxrl-egress"
BRIDGE, OWN_BRIDGE, BRIDGES = "sandboxrl0", "sandboxrl1", "sandboxrl+"
"""Docker's, ours, and both, as packet filter rules name them."""
FORWARD, NEARBY, INPUT = "SANDBOXRL", "SANDBOXRL-NEAR", "SANDBOXRL-INPUT"
USER = "DOCKER-USER"
"""Docker keeps this chain in front of its own rules and leaves alone what is in it, also when it found it there. So
rules in it come first whether or not Docker runs, and in whatever order things start."""
MARKER = Path("/run/sandboxrl-egress")
MOST_NEIGHBOURS = 8192
"""A sandbox takes two places in the kernel's table of neighbours, which is one for all network namespaces and holds
1024 if nobody says more."""
HELD = {
    "none": "its own loopback only",
    "egress": "packet filter: no private, link-local or host address",
    "full": "NOT HELD: the host's own",
}
"""What keeps a sandbox of each network from what it shall not reach."""
NEAR = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
"""Ranges that are not the public internet (RFC 6890; those for documentation lead nowhere and are left out)."""


def resolvers() -> list[str]:
    """IPv4 name servers of this machine that a container can reach (a loopback address cannot be)."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        try:
            words = [line.split() for line in Path(path).read_text().splitlines()]
        except OSError:
            continue
        found = [w[1] for w in words if len(w) > 1 and w[0] == "nameserver" and ":" not in w[1]]
        if reachable := [address for address in found if not address.startswith("127.")]:
            return reachable
    raise BackendUnavailable("sandbox.network=egress: no name server in /etc/resolv.conf that a container could reach")


def routes() -> list[tuple[str, IPv4Network]]:
    """(interface, destination) of this machine's routes."""
    lines = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    numbers = [(line[0], socket.htonl(int(line[1], 16)), socket.htonl(int(line[7], 16))) for line in lines]
    return [(name, IPv4Network((address, str(IPv4Address(mask))))) for name, address, mask in numbers]


def mtu() -> int:
    """The largest packet that the way to the internet takes; a larger one inside would stall what heeds no ICMP."""
    names = [name for name, block in routes() if block.prefixlen == 0]
    return min((int(Path(f"/sys/class/net/{name}/mtu").read_text()) for name in names), default=1500)


def specification() -> dict[str, Any]:
    """The network that Docker is asked to make."""
    return {
        "Name": NETWORK,
        "Driver": "bridge",
        "CheckDuplicate": True,
        "EnableIPv6": False,
        "Labels": {"sandboxrl": "1"},
        "Options": {
            "com.docker.network.bridge.name": BRIDGE,
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.driver.mtu": str(mtu()),
        },
    }


def protect() -> None:
    """Put the filter in place, whole or not at all, and make room for many neighbours where that may be. Raises
    BackendUnavailable when this process may not."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/net")
    marker = " ".join([boot, namespace, *resolvers()])
    if os.geteuid() != 0:
        if not MARKER.exists() or MARKER.read_text() != marker:
            raise BackendUnavailable(
                "sandbox.network=egress needs packet filter rules that only root can make; once after each boot run: "
                f"sudo {sys.executable} -m sandboxrl.envs.sandbox.network"
            )
        return
    room = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3")  # the first network namespace alone has it
    if os.access(room, os.W_OK) and int(room.read_text()) < MOST_NEIGHBOURS:
        room.write_text(str(MOST_NEIGHBOURS))
    _run(["iptables-restore", "--wait", "--noflush"], _rules())
    if not _holds(["iptables", "--wait", "-n", "-L", USER]):
        _run(["iptables", "--wait", "-N", USER])
    _first("iptables", "FORWARD", "-j", USER)
    _first("iptables", USER, "-j", FORWARD)
    _first("iptables", "INPUT", "-i", BRIDGES, "-j", INPUT)
    if Path("/proc/net/if_inet6").exists():
        for chain in ("INPUT", "FORWARD"):
            _first("ip6tables", chain, "-i", BRIDGES, "-j", "DROP")
    MARKER.write_text(marker)


def route(subnet: IPv4Network) -> None:
    """Lead the traffic of our own bridge out, under this machine's address. Called once the filter is in place."""
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    if forwarding.read_text().strip() == "0":
        # This machine passed nothing on so far; it shall go on so for all but sandboxes.
        _run(["iptables", "--wait", "-P", "FORWARD", "DROP"])
        forwarding.write_text("1")
    _first("iptables", "POSTROUTING", "-s", str(subnet), "!", "-o", OWN_BRIDGE, "-j", "MASQUERADE", table="nat")


def _rules() -> str:
    known = "-m conntrack --ctstate ESTABLISHED,RELATED"
    lines = ["*filter", *(f":{chain} - [0:0]" for chain in (FORWARD, NEARBY, INPUT))]
    lines += [f"-A {FORWARD} -i {BRIDGES} -j {NEARBY}"]
    # Docker lets its own bridge through; ours is let through here, and nothing but answers comes in.
    lines += [f"-A {FORWARD} -i {OWN_BRIDGE} -j ACCEPT", f"-A {FORWARD} -o {OWN_BRIDGE} {known} -j ACCEPT"]
    lines += [f"-A {FORWARD} -o {OWN_BRIDGE} -j REJECT", f"-A {NEARBY} {known} -j RETURN"]
    for address in resolvers():
        lines += [f"-A {NEARBY} -d {address} -p {protocol} --dport 53 -j RETURN" for protocol in ("udp", "tcp")]
    lines += [f"-A {NEARBY} -d {block} -j REJECT" for block in NEAR]
    lines += [f"-A {INPUT} {known} -j RETURN", f"-A {INPUT} -j REJECT", "COMMIT", ""]
    return "\n".join(lines)


def _first(program: str, chain: str, *rule: str, table: str = "filter") -> None:
    """The rule comes first in the chain, unless it is in it already."""
    if not _holds([program, "--wait", "-t", table, "-C", chain, *rule]):
        _run([program, "--wait", "-t", table, "-I", chain, *rule])


def _holds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def _run(command: list[str], text: str = "") -> None:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BackendUnavailable(
            f"sandbox.network=egress needs {command[0]}; install it with: apt-get install iptables"
        ) from error
    if done.returncode != 0:
        raise BackendUnavailable(
            f"sandbox.network=egress: {' '.join(command)} failed: {done.stderr.strip()}; "
            "inside a container, start that container with --cap-add NET_ADMIN"
        )
