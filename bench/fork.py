"""What a fork of a sandbox takes, beside `cp -a` of the same files: `python -m bench.fork [--quick] --out FILE.json`.

A work folder of 10 MB, once in 10 files and once in 500, in each backend that this machine has. Rounds are interleaved:
each takes a snapshot, restores it in a sandbox that is there, forks (which starts one more), carries the folder as a
stream, and copies it inside by `cp -a`, the limit: no copy of files by one program is much faster. Medians;
`fastest` is of a round that nobody disturbed.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from bench.report import measure, write_report
from sandboxrl.envs.sandbox.carry import carry
from sandboxrl.envs.sandbox.pool import BACKENDS, open_backend
from sandboxrl.envs.sandbox.protocol import Backend, BackendUnavailable, Sandbox, SandboxConfig, Snapshots

BYTES = 10_000_000
NUM_FILES = (10, 500)
GOAL_MS = 20.0
COPY = "import subprocess, time; t = time.perf_counter(); subprocess.run(['cp', '-a', 'w', 'copy'], check=True); "
COPY += "print(time.perf_counter() - t)"


async def timed(seconds: list[float], call: Awaitable[Any]) -> Any:
    started = time.perf_counter()
    found = await call
    seconds.append(time.perf_counter() - started)
    return found


async def rounds(backend: Backend, num_files: int, count: int) -> dict[str, list[float]]:
    """Seconds of each thing, by name."""
    seconds: dict[str, list[float]] = defaultdict(list)
    source, target = await backend.start(), await backend.start()
    try:
        assert isinstance(source, Snapshots) and isinstance(target, Snapshots)
        size = BYTES // num_files
        made = f"mkdir w; for i in $(seq {num_files}); do head -c {size} /dev/urandom > w/$i; done"
        assert (await source.exec(made)).exit_code == 0
        for _ in range(count):
            with await timed(seconds["snapshot"], source.snapshot()) as saved:
                await timed(seconds["restore"], target.restore(saved))
            await target.exec("rm -rf w")
            await timed(seconds["carry as a stream"], carry(source, "/testbed/w", target))
            (fork,) = await timed(seconds["fork"], source.fork(1))
            await one_copy(fork, num_files, seconds)
            await timed(seconds["start"], one_start(backend))
    finally:
        await source.close()
        await target.close()
    return seconds


async def one_copy(fork: Sandbox, num_files: int, seconds: dict[str, list[float]]) -> None:
    """Check that the fork is whole, copy its folder by `cp -a`, end it."""
    told = await fork.exec(f'ls w | wc -l; du -sb w/1; python3 -c "{COPY}"')
    files, size, copied = told.stdout.split()[0], told.stdout.split()[1], told.stdout.split()[-1]
    assert (int(files), int(size)) == (num_files, BYTES // num_files), told
    seconds["cp -a"].append(float(copied))
    await fork.close()


async def one_start(backend: Backend) -> None:
    await (await backend.start()).close()


async def run(options: argparse.Namespace) -> dict[str, Any]:
    measures: dict[str, Any] = {}
    for name in options.backends:
        try:
            backend = open_backend(SandboxConfig(backend=name, image=options.image))
        except BackendUnavailable as error:
            print(f"{name}: {error}")
            continue
        try:
            for num_files in NUM_FILES:
                found = await rounds(backend, num_files, 5 if options.quick else options.rounds)
                copy = 1e3 * statistics.median(found["cp -a"])
                for what, seconds in found.items():
                    key = f"{name}/{num_files} files/{what}"
                    limit = None if what in ("cp -a", "start") else copy
                    measures[f"{key}_ms"] = measure(1e3 * statistics.median(seconds), limit=limit)
                    if what in ("fork", "snapshot", "restore", "cp -a"):
                        goal = {"at_most": GOAL_MS, "goal": f"<= {GOAL_MS:.0f}"} if what == "fork" else {}
                        goal = goal if name == "bubblewrap" else {}
                        measures[f"{key}_fastest_ms"] = measure(1e3 * min(seconds), **goal)
        finally:
            await backend.close()
    measures["load_at_the_end"] = measure(os.getloadavg()[0])
    return measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--image", default="sandboxrl/base:local", help="Docker image")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="5 rounds")
    options = parser.parse_args()
    write_report(options.out, asyncio.run(run(options)))


if __name__ == "__main__":
    main()
