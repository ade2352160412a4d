"""What the network `egress` adds to a sandbox's start and end: `python -m bench.network [--quick] --out FILE.json`.

Rounds are interleaved: each starts and closes one sandbox with and one without a network, of each backend that this
machine has (`--backends`). Then many are started at once, and 512 of bubblewrap's are held, each asked for an answer of
its gateway. Needs root for bubblewrap, as the network does.
"""

import argparse
import asyncio
import math
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.report import measure, write_report
from sandboxrl.envs.sandbox.pool import BACKENDS, open_backend
from sandboxrl.envs.sandbox.protocol import Backend, BackendUnavailable, Sandbox, SandboxConfig

NETWORKS = ("none", "egress")
ASK_GATEWAY = """python3 -c '
import socket, struct, time
fields = open("/proc/net/route").read().split("\\n")[1].split()
gateway = socket.inet_ntoa(struct.pack("=I", int(fields[2], 16)))
asked = time.monotonic()
try:
    socket.create_connection((gateway, 9), timeout=10)
except ConnectionRefusedError:
    print(time.monotonic() - asked)
'"""
"""Prints how many seconds the gateway took to refuse; nothing where it never answered."""


async def one_by_one(backends: dict[str, Backend], rounds: int) -> dict[str, list[float]]:
    """Seconds of each start and each close."""
    seconds: dict[str, list[float]] = defaultdict(list)
    order = list(backends)
    for index in range(rounds):
        random.Random(index).shuffle(order)
        for name in order:
            started = time.perf_counter()
            box = await backends[name].start()
            seconds[f"{name}/start"].append(time.perf_counter() - started)
            await box.exec("true")
            started = time.perf_counter()
            await box.close()
            seconds[f"{name}/close"].append(time.perf_counter() - started)
    return seconds


async def start_all(backend: Backend, count: int) -> list[Sandbox]:
    """Twice as many start at a time as there are cores."""
    gate = asyncio.Semaphore(2 * (os.cpu_count() or 1))

    async def one() -> Sandbox:
        async with gate:
            return await backend.start()

    return await asyncio.gather(*(one() for _ in range(count)))


async def at_once(backend: Backend, count: int) -> float:
    """Sandboxes started a second."""
    started = time.perf_counter()
    boxes = await start_all(backend, count)
    rate = count / (time.perf_counter() - started)
    await asyncio.gather(*(box.close() for box in boxes))
    return rate


async def held(backend: Backend, count: int) -> list[float]:
    """`count` sandboxes at once: the seconds that the gateway of each took to answer, of those where it did."""
    gate = asyncio.Semaphore(8)

    async def ask(box: Sandbox) -> list[float]:
        async with gate:
            return [float(word) for word in (await box.exec(ASK_GATEWAY)).stdout.split()]

    boxes = await start_all(backend, count)
    answers = await asyncio.gather(*map(ask, boxes))
    await asyncio.gather(*(box.close() for box in boxes))
    return [second for answer in answers for second in answer]


async def run(args: argparse.Namespace) -> dict[str, Any]:
    backends = {
        f"{backend}/{network}": open_backend(SandboxConfig(backend=backend, image=args.image, network=network))
        for backend in args.backends
        for network in NETWORKS
    }
    measures: dict[str, Any] = {}
    try:
        await one_by_one(backends, 1)
        for name, seconds in sorted((await one_by_one(backends, 10 if args.quick else 60)).items()):
            ms = sorted(1000 * value for value in seconds)
            measures[f"{name}_ms"] = measure(statistics.median(ms))
            measures[f"{name}_p95_ms"] = measure(ms[round(0.95 * len(ms)) - 1])
        for name in args.backends:
            adds = measures[f"{name}/egress/start_ms"]["ours"] - measures[f"{name}/none/start_ms"]["ours"]
            measures[f"{name}/egress_adds_ms"] = measure(adds)
        for name, backend in backends.items():
            measures[f"{name}/starts_per_s"] = measure(await at_once(backend, 16 if args.quick else 64))
        if "bubblewrap" in args.backends:
            count, times = (64, 1) if args.quick else (512, 4)
            answered = [second for _ in range(times) for second in await held(backends["bubblewrap/egress"], count)]
            goal = f"0 without an answer, of {times} times {count} held at once"
            measures["bubblewrap/egress/unanswered"] = measure(count * times - len(answered), at_most=0, goal=goal)
            measures["bubblewrap/egress/slowest_answer_ms"] = measure(1000 * max(answered, default=math.inf))
    finally:
        for backend in backends.values():
            await backend.close()
    return measures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.network", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--image", default=SandboxConfig().image)
    args = parser.parse_args()
    try:
        measures = asyncio.run(run(args))
    except BackendUnavailable as error:
        sys.exit(f"bench.network: {error}")
    write_report(args.out, measures)


if __name__ == "__main__":
    main()
