"""Sandboxes on a machine that runs out, of descriptors, processes, memory and disk, while many are at work; and three
users at once. Nobody in them does anything wrong: an outcome is a right result, or the machine's fault. Never a wrong
result, a refused file, a sandbox that is said to have ended by its own doing, a hang or another exception.

    python -m bench.exhaustion [--backend bubblewrap|docker] [--image NAME] [--sandboxes 64] [--seed 0] --out FILE.json

What runs out does so for a child process and its sandboxes alone: limits of its own, control groups (version 1), a
small memory file system in a mount namespace of its own. Started by root; the users are uids that no account has.
"""

import argparse
import asyncio
import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bench import cheats
from sandboxrl.envs.grading.protocol import GraderFailed
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import Limits, Sandbox, SandboxConfig, SandboxDied

LIMITS = Limits(memory_bytes=400 << 20, disk_bytes=64 << 20, processes=64)
ROUNDS, COMMAND_S, WHOLE_S = 4, 20.0, 240.0
USERS = (23457, 23458, 23459)
MAX_FILES, MAX_TASKS, MAX_MEMORY = 400, 40, 300 << 20
WANTS_BYTES = 24 << 20
"""Of a command that needs memory; all together need more than MAX_MEMORY."""
SHORTAGES, THREE_USERS = ("nothing", "descriptors", "processes", "memory", "disk"), "three users"
NEW_MOUNTS, PRIVATE = 0x20000, 0x44000


async def one_thing(box: Sandbox, rng: random.Random) -> str:
    """One thing that a policy does, and what is wrong with its result, or empty."""
    word = str(rng.randrange(10**9))
    if rng.random() < 0.3:
        await box.write({f"f{word}": word.encode() * 1000})
        return "" if await box.read(f"f{word}") == word.encode() * 1000 else "it read what it had not written"
    command = f"(for i in 1 2 3; do sleep 0.0$i & done; wait); python3 -c 'a = bytearray({WANTS_BYTES}); print({word})'"
    result = await box.exec(f"{command}; exit 7", timeout_s=COMMAND_S)
    if (result.exit_code, result.stdout) == (7, f"{word}\n".encode()):
        return ""
    if result.timed_out or b"fork: " in result.stderr or b"Killed" in result.stderr or result.exit_code < 0:
        return "said"  # in the command's own words, which a policy can read
    return f"exit code {result.exit_code}, {result.stdout!r}, {result.stderr[-200:]!r}"


async def one_policy(pool: Pool, seed: int, found: Counter[str]) -> None:
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        await asyncio.sleep(rng.random() / 5)
        try:
            async with pool.sandbox() as box:
                for _ in range(3):
                    wrong = await one_thing(box, rng)
                    found[
                        "a right result" if not wrong else "killed or refused a fork" if wrong == "said" else wrong
                    ] += 1
        except SandboxDied:
            found["the machine's fault"] += 1
        except Exception:
            found[traceback.format_exc(limit=-2)] += 1


async def grade(pool: Pool, found: Counter[str]) -> None:
    """Work of a policy that waits on this machine's disk for a fresh sandbox."""
    try:
        score = await cheats.played(pool, "fresh", [cheats.FIX])
        found["a right result" if score == 1.0 else f"an honest solution scored {score}"] += 1
    except (GraderFailed, SandboxDied):
        found["the machine's fault"] += 1
    except Exception:
        found[traceback.format_exc(limit=-2)] += 1


@asynccontextmanager
async def thief_of_descriptors() -> AsyncIterator[None]:
    """Takes all that are left, again and again."""

    async def steal() -> None:
        while True:
            taken: list[int] = []
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            try:
                await asyncio.sleep(0.2)
            finally:
                for one in taken:
                    os.close(one)
            await asyncio.sleep(0.3)

    stealing = asyncio.create_task(steal())
    try:
        yield
    finally:
        stealing.cancel()
        await asyncio.wait([stealing])


@contextmanager
def in_group(controller: str, settings: dict[str, str]) -> Iterator[None]:
    """This process, and what it starts, in a control group of its own."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    above = Path("/sys/fs/cgroup", controller) / own[controller].lstrip("/")
    group = above / f"bench-exhaustion-{os.getpid()}"
    group.mkdir()
    for name, value in settings.items():
        (group / name).write_text(value)
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (above / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.suppress(OSError):
            group.rmdir()


@contextmanager
def full_disk() -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tempfile.mkdtemp()
    if libc.unshare(NEW_MOUNTS) or libc.mount(b"none", b"/", None, PRIVATE, None):
        raise OSError(ctypes.get_errno(), "a mount namespace")
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=1048576"):
        raise OSError(ctypes.get_errno(), "a small file system")
    with open(f"{folder}/full", "wb", buffering=0) as full, contextlib.suppress(OSError):
        while full.write(bytes(4096)):
            pass
    tempfile.tempdir = folder
    yield


def run_short(what: str, config: SandboxConfig, num: int, seed: int) -> dict[str, Any]:
    """What came of `num` policies at work while this process runs short of something."""
    before, found = time.monotonic(), Counter[str]()

    async def run() -> Counter[str]:
        pool = Pool(open_backend(config), warm=0)
        after: Counter[str] = Counter()
        try:
            async with asyncio.timeout(WHOLE_S):
                short = thief_of_descriptors() if what == "descriptors" else contextlib.nullcontext()
                async with short:
                    policies = [one_policy(pool, 1000 * seed + i, found) for i in range(num)]
                    await asyncio.gather(*policies, *(grade(pool, found) for _ in range(4 if what == "disk" else 0)))
                if what in ("descriptors", "processes", "memory"):
                    await one_policy(pool, seed, after)
        finally:
            await pool.close()
        return after

    with contextlib.ExitStack() as stack:
        if what == "descriptors":
            resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
        elif what == "processes":
            stack.enter_context(in_group("pids", {"pids.max": str(MAX_TASKS)}))
        elif what == "memory":
            stack.enter_context(in_group("memory", {"memory.limit_in_bytes": str(MAX_MEMORY)}))
        elif what == "disk":
            stack.enter_context(full_disk())
        after = asyncio.run(run())
    return {"outcomes": dict(found), "afterwards": dict(after), "seconds": round(time.monotonic() - before, 1)}


def in_a_child(uid: int, *arguments: Any) -> dict[str, Any]:
    """`run_short`, in a process that has its limits to itself."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        if uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable again, as a process of that user is
        try:
            theirs.send(run_short(*arguments))
        except BaseException:
            theirs.send({"outcomes": {traceback.format_exc(): 1}})

    process = context.Process(target=child)
    process.start()
    theirs.close()
    try:
        return dict(ours.recv())
    except EOFError:
        return {"outcomes": {"the process that uses the sandboxes ended": 1}}
    finally:
        process.join()


RIGHT = {"a right result", "killed or refused a fork", "the machine's fault"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--backend", default="bubblewrap")
    parser.add_argument("--image", default=SandboxConfig().image)
    parser.add_argument("--sandboxes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one row of the table")
    parser.add_argument("--out", type=Path, required=True, help="the rows of one table add up in it")
    args = parser.parse_args()
    config = SandboxConfig(backend=args.backend, image=args.image, limits=LIMITS)
    table: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    rows = (*SHORTAGES, THREE_USERS) if args.backend == "bubblewrap" else SHORTAGES
    for what in [args.only] if args.only else rows:
        if what == THREE_USERS:
            with ThreadPoolExecutor(len(USERS)) as users:
                each = [users.submit(in_a_child, uid, "nothing", config, args.sandboxes // 3, uid) for uid in USERS]
                table[what] = {str(uid): one.result() for uid, one in zip(USERS, each, strict=True)}
        else:
            table[what] = in_a_child(0, what, config, args.sandboxes, args.seed)
        print(what, table[what], flush=True)
    args.out.write_text(json.dumps(table, indent=1) + "\n")
    rows = [row for row in table.values() for row in (row.values() if "outcomes" not in row else [row])]
    wrong = {kind for row in rows for kind in (row["outcomes"].keys() | row.get("afterwards", {}).keys()) - RIGHT}
    wrong |= {f"afterwards: {kind}" for row in rows for kind in row.get("afterwards", {}).keys() - {"a right result"}}
    print("\n".join(sorted(wrong)) or "every outcome is a right one")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
