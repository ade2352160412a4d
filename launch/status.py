"""`sandboxrl status RUN`: what a live run is doing, what it waits for and since when."""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.rl.watch import STATUS

LATE_S = 60
"""A status that is older comes from a run that stands still."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="a run folder, for example runs/tiny")
    parser.add_argument("--json", action="store_true", help="print status.json as it is")


def run(args: argparse.Namespace) -> int:
    """Exit code 0: the run is alive and answers. 1: it has ended, or stands still."""
    if not (args.run_dir / "recipe.yaml").is_file():
        raise InputError(f"{args.run_dir} is not a run folder: it has no recipe.yaml")
    file = args.run_dir / STATUS
    if not file.is_file():
        raise InputError(f"{args.run_dir} has no {STATUS}: the run has not started its actors yet")
    try:
        status = dict(json.loads(file.read_text()))
        alive = Path(f"/proc/{int(status['pid'])}").exists()
        age_s = time.monotonic() - float(status["monotonic"])  # of the machine: a clock that is set changes nothing
        lines = [json.dumps(status)] if args.json else list(_lines(status, alive, age_s))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from None
    print("\n".join(lines))
    return int(not alive or age_s > LATE_S)


def _lines(status: Mapping[str, Any], alive: bool, age_s: float) -> Iterator[str]:
    state = "running" if alive else "not running any more"
    if alive and age_s > LATE_S:
        state = f"stands still: it has written nothing for {age_s:.0f} s; its stacks: kill -USR1 {status['pid']}"
    step = f"step {status.get('step', 0)} of {status.get('steps', '?')}"
    yield f"process {status['pid']}: {state}; {step}, as of {age_s:.0f} s ago"
    for what in ("published", "saved"):
        if status.get(what):
            version = f" (version {status['version']})" if what == "published" else ""
            yield f"last {what} {time.time() - status[what]:.0f} s ago{version}"
    groups = status.get("groups_in_flight", [])
    yield f"groups in flight: {len(groups)}"
    for group in groups[:5]:
        yield f"  group {group['group']} ({group['task']}), for {group['for_s']:.0f} s"
    for worker in status.get("workers", []):
        yield from _worker(worker)
    waits = status.get("waits", [])
    yield f"waits: {len(waits) or 'none'}"
    for wait in waits:
        yield f"  {wait['who']}: {wait['what']}, for {wait['for_s']:.0f} s of at most {wait['limit_s']:.0f} s"


def _worker(worker: Mapping[str, Any]) -> Iterator[str]:
    name = f"rollout worker {worker['worker']}"
    if "state" in worker:
        yield f"{name}: {worker['state']}"
        return
    known = "trajectories" in worker
    counts = (
        f"{worker['trajectories']} trajectories, {worker['engine_requests']} in its engine" if known else "no answer"
    )
    yield f"{name}: {counts}; last heard of {worker['silent_s']:.0f} s ago"
    for one in worker.get("slowest", []):
        command = f"; for {one['command_s']:.0f} s: {one['command']}" if one.get("command") else ""
        yield f"  {one['task']}, for {one['for_s']:.0f} s, {one['turns']} turns{command}"
