"""The sandbox against its peers and its limits: `python -m bench.sandbox [--quick] --out FILE.json`.

Rounds are interleaved: each round starts, uses and closes one sandbox of every contestant, so that they share whatever
else the machine does. Contestants: our two backends; llm-in-sandbox's DockerRuntime and SWE-ReX's DockerDeployment on
the same image, each as published, in an environment of their own (`--peers PYTHON`, see `bench/peers.py`; without it
their columns are empty); and the floor, a fork and exec of `bash` on the host. Raw numbers go to `--raw`, by default
beside `--out`. Without --quick it also runs the attack suite against the reference, holds 512 sandboxes, repeats
start-use-close ten thousand times and sends a million hostile frames.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from bench.attacks import ATTACKS, BOMBS, COMMANDS
from bench.report import measure, write_report
from sandboxrl.envs.sandbox.inside.frames import pack
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import (
    Backend,
    BackendUnavailable,
    ExecResult,
    FileRefused,
    Limits,
    Sandbox,
    SandboxConfig,
    SandboxDied,
)

IMAGE = SandboxConfig().image
FILES = {f"/testbed/documents/d{n}.txt": "x" * 49_999 + "\n" for n in range(20)}
ATTACK_S = 30
"""A contestant that is still at it then has lost."""
OURS = ("bubblewrap", "docker")
Samples = dict[str, dict[str, list[float]]]


class PeerBox:
    """A peer's sandbox as `sandboxrl.envs.sandbox.protocol.Sandbox`, through `bench/peers.py`."""

    def __init__(self, python: str, name: str, image: str) -> None:
        self.id = name
        self.alive = True
        self._command = [python, str(Path(__file__).with_name("peers.py")), name, image]
        self._process: asyncio.subprocess.Process | None = None
        self._container = ""

    async def call(self, op: str, **fields: Any) -> dict[str, Any]:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, limit=1 << 30
            )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
        await self._process.stdin.drain()
        answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        if "error" in answer:
            raise SandboxDied(answer["error"])
        self._container = answer.get("container", self._container)
        return answer

    async def exec(
        self,
        command: str,
        timeout_s: float = 120.0,
        cwd: str = "/testbed",
        env: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> ExecResult:
        seen = await self.call("exec", command=command, timeout_s=timeout_s)
        out, err = seen["stdout"].encode(), seen["stderr"].encode()
        code = int(seen["code"].split()[-1])
        return ExecResult(code, out, err, code == -1, len(out), len(err), seen["seconds"])

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        return str((await self.call("read", path=path))["content"]).encode()

    async def write(self, files: Mapping[str, bytes]) -> None:
        await self.call("write", files={path: data.decode() for path, data in files.items()})

    async def close(self) -> None:
        await self.call("close")
        self._container = ""

    async def end(self) -> None:
        """End the peer's process, which may hang, and remove its container."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None
        if self._container:
            remove = await asyncio.create_subprocess_exec(
                "docker", "rm", "-f", self._container, stdout=subprocess.DEVNULL
            )
            await remove.wait()
            self._container = ""


async def timed(samples: list[float], work: Awaitable[Any]) -> Any:
    started = time.perf_counter()
    result = await work
    samples.append(time.perf_counter() - started)
    return result


async def our_round(backend: Backend, pool: Pool, found: dict[str, list[float]], hundred: bool) -> None:
    box = await timed(found["start"], backend.start())
    await box.exec("true")
    for _ in range(5):
        await timed(found["command"], box.exec("echo hi"))
    if hundred:
        started = time.perf_counter()
        for _ in range(100):
            await box.exec("echo hi")
        found["100_commands"].append(time.perf_counter() - started)
    await timed(found["files"], box.write({path: text.encode() for path, text in FILES.items()}))
    await box.exec("echo 42 > answer.txt")
    await timed(found["answer"], box.read("/testbed/answer.txt"))
    await timed(found["close"], box.close())
    await pool.fill()
    started = time.perf_counter()
    async with pool.sandbox() as warm:
        found["warm_start"].append(time.perf_counter() - started)
        await warm.exec("true")
        found["warm_first_command"].append(time.perf_counter() - started)


async def peer_round(peer: PeerBox, found: dict[str, list[float]], hundred: bool) -> None:
    async def step(name: str, op: str, **fields: Any) -> None:
        found[name].append((await peer.call(op, **fields))["seconds"])

    await step("start", "start")
    await peer.call("exec", command="true")
    for _ in range(5):
        await step("command", "exec", command="echo hi")
        if peer.id == "swerex":
            await step("execute", "execute", command="echo hi")
    if hundred:
        seconds = [(await peer.call("exec", command="echo hi"))["seconds"] for _ in range(100)]
        found["100_commands"].append(sum(seconds))
    await peer.call("exec", command="mkdir -p /testbed/documents")
    await step("files", "write", files=FILES)
    await peer.call("exec", command="echo 42 > /testbed/answer.txt")
    await step("answer", "read", path="/testbed/answer.txt")
    await step("close", "close")


def floor_round(found: dict[str, list[float]]) -> None:
    """Fork, exec and wait for bash on the host, with no locale to load: what a command cannot beat."""
    for _ in range(5):
        reader, writer = os.pipe()
        started = time.perf_counter()
        actions = [(os.POSIX_SPAWN_DUP2, writer, 1)]
        pid = os.posix_spawn("/bin/bash", ["bash", "-c", "echo hi"], {"SHELL": "/bin/bash"}, file_actions=actions)
        os.close(writer)
        while os.read(reader, 100):
            pass
        os.waitpid(pid, 0)
        found["command"].append(time.perf_counter() - started)
        os.close(reader)


async def rounds(count: int, image: str, peers: str, budget_s: float) -> Samples:
    """Samples in seconds: contestant -> step -> one number a repetition. No round begins after `budget_s`."""
    end = time.monotonic() + budget_s
    samples: Samples = defaultdict(lambda: defaultdict(list))
    backends = {name: open_backend(SandboxConfig(backend=name, image=image)) for name in OURS}
    pools = {name: Pool(backend, warm=1) for name, backend in backends.items()}
    others = {name: PeerBox(peers, name, image) for name in ("reference", "swerex")} if peers else {}
    order = [*backends, *others, "floor"]
    try:
        for index in range(count):
            if time.monotonic() > end:
                break
            random.Random(index).shuffle(order)
            for name in order:
                hundred = index % 5 == 0
                if name in backends:
                    await our_round(backends[name], pools[name], samples[name], hundred)
                elif name in others:
                    await peer_round(others[name], samples[name], hundred)
                else:
                    floor_round(samples[name])
    finally:
        for pool in pools.values():
            await pool.close()
        for peer in others.values():
            await peer.end()
    return samples


def p95(values: list[float]) -> float:
    return sorted(values)[max(0, round(0.95 * len(values)) - 1)]


def memory_of(pids: set[int]) -> int:
    """Bytes of processes, shared pages divided among those that share them."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10
    return total


def program_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def all_pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


async def hold(name: str, image: str, count: int) -> dict[str, float]:
    """Start `count` sandboxes, keep them all, use each, and end them."""
    backend = open_backend(SandboxConfig(backend=name, image=image))
    before = all_pids()
    daemons = {pid for pid in before if program_of(pid) in ("dockerd", "containerd")}
    daemon_memory = memory_of(daemons)
    gate = asyncio.Semaphore(2 * (os.cpu_count() or 1))
    boxes: list[Sandbox] = []
    failures = 0

    async def one() -> None:
        nonlocal failures
        async with gate:
            try:
                boxes.append(await backend.start())
            except SandboxDied:
                failures += 1

    started = time.perf_counter()
    try:
        await asyncio.gather(*(one() for _ in range(count)))
        start_s = time.perf_counter() - started
        answers = await asyncio.gather(*(box.exec("echo $((6 * 7))") for box in boxes))
        failures += sum(answer.stdout != b"42\n" for answer in answers)
        bytes_each = (memory_of(all_pids() - before) + memory_of(daemons) - daemon_memory) / max(1, len(boxes))
    finally:
        started = time.perf_counter()
        await asyncio.gather(*(box.close() for box in boxes))
        await backend.close()
    return {
        "failures": failures,
        "start_s": start_s,
        "MB_each": bytes_each / 1e6,
        "close_s": time.perf_counter() - started,
    }


async def throughput(name: str, image: str, boxes: int, seconds: float) -> float:
    """Commands a second of `boxes` sandboxes that all loop over `echo hi`."""
    pool = Pool(open_backend(SandboxConfig(backend=name, image=image)), warm=0)
    done = 0
    ready, go = asyncio.Semaphore(0), asyncio.Event()

    async def one() -> None:
        nonlocal done
        async with pool.sandbox() as box:
            ready.release()
            await go.wait()
            while time.perf_counter() < end:
                await box.exec("echo hi")
                done += 1

    end = 0.0
    tasks = [asyncio.create_task(one()) for _ in range(boxes)]
    for _ in range(boxes):
        await ready.acquire()
    end = time.perf_counter() + seconds
    go.set()
    await asyncio.gather(*tasks)
    await pool.close()
    return done / seconds


async def attacked(
    new_box: Callable[[], Awaitable[Sandbox]], end: Callable[[Sandbox], Awaitable[None]], bombs: bool
) -> list[str]:
    """The attacks that succeed. Those of one command share a sandbox, the others get one each."""
    succeeded = []

    async def judge(name: str, box: Sandbox) -> bool:
        """Record the outcome; False when the sandbox hangs."""
        try:
            await asyncio.wait_for((ATTACKS | BOMBS)[name](box), ATTACK_S)
        except (AssertionError, SandboxDied, FileRefused, TimeoutError, ValueError, IndexError) as error:
            succeeded.append(name)
            return not isinstance(error, TimeoutError)
        return True

    shared = await new_box()
    for name in COMMANDS:
        if not await judge(name, shared):
            await end(shared)
            shared = await new_box()
    await end(shared)
    for name in [name for name in (*ATTACKS, *(BOMBS if bombs else ())) if name not in COMMANDS]:
        box = await new_box()
        await judge(name, box)
        await end(box)
    return succeeded + ([] if bombs else [f"{name} (not run: it sets no limits)" for name in BOMBS])


async def our_attacks(name: str, image: str) -> list[str]:
    limits = Limits(memory_bytes=768 << 20, disk_bytes=256 << 20, processes=128)
    backend = open_backend(SandboxConfig(backend=name, image=image, limits=limits))
    try:
        return await attacked(backend.start, lambda box: box.close(), bombs=True)
    finally:
        await backend.close()


async def reference_attacks(image: str, peers: str) -> list[str]:
    async def new_box() -> Sandbox:
        box = PeerBox(peers, "reference", image)
        await box.call("start")
        return box

    async def end(box: Sandbox) -> None:
        assert isinstance(box, PeerBox)
        await box.end()

    return await attacked(new_box, end, bombs=False)


HOLDER = """
import asyncio, sys
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import SandboxConfig
async def main():
    backend = open_backend(SandboxConfig(backend={name!r}, image={image!r}))
    gate = asyncio.Semaphore(4)
    async def one():
        async with gate:
            box = await backend.start()
        await box.exec("setsid sleep 3600 >/dev/null 2>&1 &")
        return box
    kept = await asyncio.gather(*(one() for _ in range({count})))
    print("held", flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


async def left_after_kill(name: str, image: str, count: int) -> tuple[int, float]:
    """(processes of the killed owner's sandboxes after one second, seconds until none was left)."""
    before = all_pids()
    root = str(Path(__file__).parents[1])
    program = HOLDER.format(name=name, image=image, count=count)
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=root)
    assert owner.stdout and owner.stdout.readline() == b"held\n"
    inside: set[int] = set()
    try:
        async with asyncio.timeout(60):
            while len(inside) < count:  # a shell may still be on its way to becoming `sleep`
                await asyncio.sleep(0.05)
                inside = {pid for pid in all_pids() - before if _is_sleeper(pid)}
    finally:
        killed = time.monotonic()
        owner.send_signal(signal.SIGKILL)
    after_one_second = -1
    while left := {pid for pid in inside if _is_sleeper(pid)}:
        if after_one_second < 0 and time.monotonic() - killed >= 1:
            after_one_second = len(left)
        if time.monotonic() - killed > 60:
            break
        await asyncio.sleep(0.01)
    owner.wait()
    return max(0, after_one_second), time.monotonic() - killed


def _is_sleeper(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x003600\x00"
    except OSError:
        return False


async def leaks(name: str, image: str, cycles: int) -> dict[str, int]:
    """What start-use-close cycles leave behind: descriptors, child processes, mounts, folders."""
    backend = open_backend(SandboxConfig(backend=name, image=image))
    tempfile.tempdir = tempfile.mkdtemp()  # of this run alone
    temporary = Path(tempfile.tempdir)

    def holdings() -> dict[str, int]:
        me = os.getpid()
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "children": len(Path(f"/proc/{me}/task/{me}/children").read_text().split()),
            "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
            "folders": len(list(temporary.rglob("*"))),
            "groups": len(list(Path("/sys/fs/cgroup").rglob(f"sandboxrl.*:{me}:*"))),
        }

    async def cycle() -> None:
        box = await backend.start()
        await box.exec("echo hi")
        await box.close()

    try:
        await cycle()
        before = holdings()
        for _ in range(cycles // 4):
            await asyncio.gather(*(cycle() for _ in range(4)))
        return {kind: number - before[kind] for kind, number in holdings().items()}
    finally:
        await backend.close()
        shutil.rmtree(temporary)
        tempfile.tempdir = None


async def fuzz(frames: int, seed: int = 0) -> dict[str, float]:
    """Hostile frames into real executors, up to a thousand a sandbox. Each executor must go on answering or end; one
    that got a torn frame can only wait for its rest, and must then end with its stream."""
    rng = random.Random(seed)
    backend = open_backend(SandboxConfig())
    ended = hangs = sent = largest = 0
    values = [b"", b"0", b"1", b"-1", b"nan", b"9" * 30, b"\xff", b"/testbed/x", b"..", b"/proc/1/mem", b"x" * 3000]
    keys = [b"timeout", b"keep", b"cwd", b"input", b"quiet", b"wait", b"path", b"max", b"env.A", b"env."]
    operations = [b"ping", b"read", b"write", b"exec", b"shell", b"", b"run"]
    while sent < frames:
        box: Any = await backend.start()
        torn = False
        try:
            for _ in range(10):
                for _ in range(100):
                    operation = rng.choices(operations, [40, 25, 25, 2, 2, 0.02, 0.02])[0]
                    fields = {rng.choice(keys): rng.choice(values) for _ in range(rng.randint(0, 4))}
                    frame = pack({b"id": b"x", b"op": operation, **fields}, rng.randbytes(rng.randint(0, 60)))
                    torn = rng.random() < 0.0003
                    box.send(frame[: rng.randint(1, len(frame) - 1)] if torn else frame)
                    sent += 1
                    if torn:
                        break
                if torn:
                    break
                async with asyncio.timeout(60):
                    await box.exec("true")
            largest = max(largest, memory_of({int(pid) for pid in _children_of_children()}))
        except SandboxDied:
            ended += 1
        except TimeoutError:
            hangs += 1
        try:
            await asyncio.wait_for(box.close(), 10)
        except TimeoutError:
            hangs += 1
    await backend.close()
    return {"frames": sent, "ended": ended, "hangs": hangs, "MB": largest / 1e6}


def _children_of_children() -> list[str]:
    me = os.getpid()
    found: list[str] = []
    for child in Path(f"/proc/{me}/task/{me}/children").read_text().split():
        found += [child, *Path(f"/proc/{child}/task/{child}/children").read_text().split()]
    return found


async def compare(args: argparse.Namespace, raw: dict[str, Any]) -> dict[str, Any]:
    """Start, use and close, against the peers and the floor."""
    raw["seconds"] = samples = await rounds(
        args.rounds or (6 if args.quick else 40), args.image, args.peers, 100 if args.quick else args.budget_s
    )
    ms = {name: {step: 1e3 * statistics.median(v) for step, v in steps.items()} for name, steps in samples.items()}
    floor = ms["floor"]["command"]
    reference, swerex = ms.get("reference", {}), ms.get("swerex", {})
    measures: dict[str, Any] = {"floor/fork_exec_ms": measure(floor)}
    for name in OURS:
        ours = ms[name]
        measures |= {
            f"{name}/command_over_fork_exec_ms": measure(ours["command"], limit=floor, at_most=2, goal="<= 2x"),
            f"{name}/warm_start_ms": measure(ours["warm_start"], at_most=5, goal="<= 5"),
            f"{name}/warm_first_command_ms": measure(ours["warm_first_command"]),
        }
        for step in ("start", "command", "100_commands", "files", "answer", "close"):
            times = {"start": 3.5, "command": 20, "files": 15, "close": 50}.get(step) if reference else None
            measures[f"{name}/{step}_ms"] = measure(
                ours[step],
                peer=reference.get(step),
                at_most=1 / times if times else None,
                goal=f"{times:g} times the reference's speed" if times else "",
            )
            measures[f"{name}/{step}_p95_ms"] = measure(1e3 * p95(samples[name][step]))
        for step, label in (("command", "session"), ("execute", "stateless")) if swerex else ():
            measures[f"{name}/command_against_swerex_{label}_ms"] = measure(
                ours["command"], peer=swerex[step], at_most=1 / 3, goal="3 times SWE-ReX's speed"
            )
    measures["bubblewrap/cold_start_ms"] = measure(ms["bubblewrap"]["start"], at_most=30, goal="<= 30")
    measures["bubblewrap/close_within_ms"] = measure(ms["bubblewrap"]["close"], at_most=10, goal="<= 10")
    measures["docker/close_within_ms"] = measure(ms["docker"]["close"], at_most=100, goal="<= 100")
    return measures


async def scale(args: argparse.Namespace, raw: dict[str, Any]) -> dict[str, Any]:
    """Many at once: held, at work, and left by a killed owner."""
    size = subprocess.check_output(["docker", "image", "inspect", "-f", "{{.Size}}", args.image])
    measures: dict[str, Any] = {"docker/image_MB": measure(int(size) / 1e6)}  # shared by all; bubblewrap has none
    held = 64 if args.quick else 512
    for name, most in (("bubblewrap", 7), ("docker", 12)):
        raw[f"{name}/hold"] = seen = await hold(name, args.image, held)
        measures[f"{name}/held_{held}_failures"] = measure(seen["failures"], at_most=0, goal="0")
        measures[f"{name}/held_{held}_MB_each"] = measure(seen["MB_each"], at_most=most, goal=f"<= {most}")
        measures[f"{name}/held_{held}_start_all_s"] = measure(seen["start_s"])
        measures[f"{name}/held_{held}_close_all_s"] = measure(seen["close_s"])
        per_s = await throughput(name, args.image, 64, 3 if args.quick else 10)
        measures[f"{name}/commands_per_s_at_64"] = measure(per_s, at_least=500, goal=">= 500")
        left, until_s = await left_after_kill(name, args.image, 16 if args.quick else 64)
        measures[f"{name}/left_1s_after_kill"] = measure(left, at_most=0, goal="0")
        measures[f"{name}/gone_after_kill_s"] = measure(until_s)
    return measures


async def endure(args: argparse.Namespace, raw: dict[str, Any]) -> dict[str, Any]:
    """What thousands of sandboxes leave behind."""
    measures: dict[str, Any] = {}
    for name, cycles in (("bubblewrap", 200 if args.quick else 10_000), ("docker", 40 if args.quick else 1000)):
        raw[f"{name}/leaks"] = left = await leaks(name, args.image, cycles)
        measures[f"{name}/left_after_{cycles}_cycles"] = measure(sum(map(abs, left.values())), at_most=0, goal="0")
    return measures


async def noise(args: argparse.Namespace, raw: dict[str, Any]) -> dict[str, Any]:
    """Hostile frames into real executors."""
    raw["fuzz"] = seen = await fuzz(20_000 if args.quick else 1_000_000)
    return {
        "fuzz/frames": measure(seen["frames"]),
        "fuzz/sandboxes_ended": measure(seen["ended"]),
        "fuzz/hangs": measure(seen["hangs"], at_most=0, goal="0"),
        "fuzz/largest_MB": measure(seen["MB"], at_most=64, goal="<= 64"),
    }


async def attack(args: argparse.Namespace, raw: dict[str, Any]) -> dict[str, Any]:
    """How many attacks each contestant withstands."""
    measures: dict[str, Any] = {}
    total = len(ATTACKS) + len(BOMBS)
    for name in OURS:
        raw[f"{name}/attacks_that_succeed"] = bad = await our_attacks(name, args.image)
        measures[f"{name}/attacks_withstood"] = measure(total - len(bad), limit=total, at_least=1, goal="all")
    if args.peers:
        raw["reference/attacks_that_succeed"] = bad = await reference_attacks(args.image, args.peers)
        measures["reference/attacks_withstood"] = measure(total - len(bad), limit=total)
    return measures


PARTS = {"compare": compare, "scale": scale, "attack": attack, "endure": endure, "noise": noise}


async def run(args: argparse.Namespace) -> dict[str, Any]:
    raw: dict[str, Any] = {"load_before": os.getloadavg()}
    measures: dict[str, Any] = {}
    for part in args.parts:
        print(f"{part} …", flush=True)
        measures |= await PARTS[part](args, raw)
        raw["load_after"] = os.getloadavg()
        args.raw.write_text(json.dumps(raw) + "\n")
        args.out.write_text(json.dumps(measures, indent=2) + "\n")
    return measures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sandbox", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--raw", type=Path, help="file for the raw numbers; default: beside --out")
    parser.add_argument("--quick", action="store_true", help="smaller counts, under five minutes")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of the comparison; 0: 40, quick 6")
    parser.add_argument("--budget-s", type=float, default=3600, help="no further round of the comparison after this")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--image", default=IMAGE)
    parser.add_argument(
        "--peers", default="", help="Python of an environment with llm-in-sandbox==0.2.0 and swe-rex==1.4.0"
    )
    args = parser.parse_args()
    args.raw = args.raw or args.out.with_suffix(".raw.json")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally`: peers leave containers behind
    try:
        measures = asyncio.run(run(args))
    except BackendUnavailable as error:
        sys.exit(f"bench.sandbox: {error}")
    write_report(args.out, measures)


if __name__ == "__main__":
    main()
