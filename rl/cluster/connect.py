"""The Ray cluster that a run works on: the one it is given, that of the job it runs in, or one of its own.

A cluster of its own listens on loopback only, and ends with the process that started it, however that ends: a guard of
ours ends its servers and agents, and an actor ends with the raylet that started it.
"""

import asyncio
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sandboxrl.data.errors import InputError, described
from sandboxrl.rl.watch import answer_with_stacks, stacks_of

PR_SET_PDEATHSIG = 1
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for every job."""
GCS = "--gcs-address="
STARTS = 4
"""How often to start a cluster: Ray gives its servers 30 s, which are little on a busy machine."""
STACKS_S = 20.0
"""How long a task on another node may take to read the stacks of an actor there."""

HEAD_S, HEAD_EVERY_S = 15.0, 3.0
"""A head that cannot be reached for so long is gone; how often to look. Ray gives up after 60 s, without a word."""

GUARD = """
import os, signal, sys
held = []
for pid in sys.argv[1:]:
    try:
        held.append(os.pidfd_open(int(pid)))
    except ProcessLookupError:
        pass
sys.stdin.read()
for process in held:
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
"""Waits for the end of its input, which comes when whoever started it ends, and kills the processes it was given. It
holds them by descriptor, so a number that the system gives to another process means nothing to it."""


def connect(address: str) -> None:
    """Join the cluster of `address`, else that of the Ray job this runs in, else start one on this machine. Raises
    InputError where no cluster answers, TimeoutError where one does not start. Signals are heeded as before: Ray's own
    handlers would abort the process."""
    heeded = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        _connect(address)
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in heeded.items():
                signal.signal(number, handler)


def _connect(address: str) -> None:
    if address := address or _cluster_of_job() or os.environ.get("RAY_ADDRESS", ""):
        check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, namespace=f"sandboxrl-{os.getpid()}")
        except (ConnectionError, ValueError) as error:
            raise InputError(f"cluster: no Ray cluster at {address}: {error}") from None
        return
    stay_on_loopback()
    logging.getLogger("ray").setLevel(logging.ERROR)  # it announces the token that guards the cluster on loopback
    for left in reversed(range(STARTS)):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _system_config={"prestart_worker_first_driver": False},  # every actor has an environment of its own
            )
            break
        except Exception as error:  # a bare one
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise TimeoutError(f"Ray did not start, {STARTS} times; this machine may be overloaded") from error
    guard_descendants()


def _cluster_of_job() -> str:
    """HOST:PORT of the cluster whose job this process is; empty for none. What Ray gives a job as RAY_ADDRESS may be
    another cluster of the machine where there are several, or one that is gone."""
    pid = os.getpid() if JOB in os.environ else 0
    while pid > 1:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        found = [word.removeprefix(GCS) for word in words if word.startswith(GCS)]
        if words[0].endswith("/raylet") and found:
            return found[0]
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return ""


def stay_on_loopback() -> None:
    """A cluster that this process starts from now on is reached from this machine alone. By itself Ray listens on every
    address, but for systems whose firewall would ask; this is its switch for those, here and in its servers."""
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def end_with_raylet() -> None:
    """The kernel ends this actor's process when the raylet that started it ends. Ray itself looks whether an orphan has
    become a child of process 1, and where a service manager or a container's init collects orphans it has not."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def check_reachable(address: str) -> None:
    """Ray itself tries for minutes and then ends the process. Raises InputError."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise InputError(f"cluster: nothing answers at {address}: {error}") from None


async def head_is_gone() -> str:
    """Returns, with what to tell, when the head of the cluster could not be reached for `HEAD_S`. Ray itself tries for
    a minute and then aborts this process."""
    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    heard = time.monotonic()
    while time.monotonic() - heard < HEAD_S:
        try:
            async with asyncio.timeout(HEAD_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
            heard = time.monotonic()
        except (OSError, TimeoutError):
            pass
        await asyncio.sleep(HEAD_EVERY_S)
    return f"the head of the Ray cluster, {address}, has not answered for {HEAD_S:g} s"


def guard_descendants() -> None:
    """What has been started below this process so far ends with it, even when it is killed."""
    theirs, _ours = os.pipe()  # our end is never written to nor closed: the kernel closes it when this process ends
    command = [sys.executable, "-I", "-S", "-c", GUARD, *map(str, _descendants(os.getpid()))]
    subprocess.Popen(command, stdin=theirs, start_new_session=True)  # so that Ctrl-C in the terminal does not reach it
    os.close(theirs)


def _descendants(pid: int) -> list[int]:
    try:
        tasks = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError):  # it, or one of its threads, has ended just now
        return []
    children = [int(word) for text in tasks for word in text.split()]
    return children + [further for child in children for further in _descendants(child)]


def whereabouts() -> dict[str, Any]:
    """Of the actor that calls it: its node, and what its stacks are read with from now on."""
    return {"node": ray.get_runtime_context().get_node_id(), **answer_with_stacks()}


async def stacks_of_actors(actors: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name -> the stacks of an actor's threads, or why there are none; from the `whereabouts` of each. An actor on
    another node is asked by a task there."""
    here = ray.get_runtime_context().get_node_id()

    async def one(where: dict[str, Any]) -> str:
        process = {key: where[key] for key in ("pid", "descriptor")}
        if where["node"] == here:
            return await asyncio.to_thread(stacks_of, process)
        there = NodeAffinitySchedulingStrategy(where["node"], soft=False)
        asked = ray.remote(stacks_of).options(num_cpus=0, scheduling_strategy=there).remote(process)
        try:
            return str(await asyncio.wait_for(asked, STACKS_S))
        except (RayError, TimeoutError) as error:
            return f"its node does not answer: {described(error)}"

    return dict(zip(actors, await asyncio.gather(*map(one, actors.values())), strict=True))


def cause(error: BaseException) -> str:
    """The last line of a Ray error: what was raised in the actor, or how it ended, without Ray's list of guesses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(" Some common causes include")[0] if lines else type(error).__name__
