"""Sandboxes on another node of a Ray cluster: the same contract, placed by a resource, gone with their user."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandboxrl.data.plugin import Code, plugged
from sandboxrl.envs.sandbox.pool import Pool
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, FileRefused, SandboxConfig, SandboxDied

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("sandbox_node")]
ray = pytest.importorskip("ray")

from sandboxrl.rl.cluster.hosts import RESOURCE, RemoteBackend, SandboxHost  # noqa: E402
from tests.ray_cluster import SANDBOXES  # noqa: E402


def opened() -> RemoteBackend:
    try:
        return RemoteBackend.open(SandboxConfig())
    except BackendUnavailable as error:
        pytest.skip(str(error))


def test_a_remote_sandbox_keeps_the_contract(ray_cluster):
    async def body():
        pool = Pool(opened(), warm=1)
        try:
            async with pool.sandbox() as box:
                result = await box.exec("echo out; echo err >&2; exit 3")
                assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
                await box.write({"a b.txt": b"\xff\x00"})
                assert await box.read("a b.txt") == b"\xff\x00"
                with pytest.raises(FileRefused) as caught:
                    await box.read("missing")
                assert caught.value.errno == 2
                assert (await box.exec("sleep 60", timeout_s=0.3)).timed_out
                with await box.snapshot(["/testbed"]) as saved:
                    await box.exec("rm *")
                    await box.restore(saved)
                forks = await box.fork(2)
                for one in (box, *forks):
                    assert await one.read("a b.txt") == b"\xff\x00"
                for fork in forks:
                    await fork.close()
                assert [r.stdout for r in await asyncio.gather(*(box.exec(f"echo {n}") for n in range(8)))] == [
                    b"%d\n" % n for n in range(8)
                ]
            assert not box.alive
            with pytest.raises(SandboxDied):
                await box.exec("true")
        finally:
            await pool.close()

    asyncio.run(body())


def test_a_node_gives_no_more_than_it_offers(ray_cluster):
    async def body():
        backend = opened()
        try:
            boxes = [await backend.start() for _ in range(SANDBOXES)]
            further = asyncio.create_task(backend.start())
            await asyncio.sleep(0.5)
            assert not further.done(), f"the node offers {SANDBOXES}"
            await boxes[0].close()
            assert (await (await further).exec("echo in")).stdout == b"in\n"
        finally:
            await backend.close()

    asyncio.run(body())


def host_processes() -> list[int]:
    """What runs the actors that start sandboxes, by pid."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::SandboxHost"):
                found.append(int(path.parent.name))
    return found


def test_a_killed_host_is_the_machines_fault_and_comes_back(ray_cluster):
    async def body():
        backend = opened()
        box = await backend.start()
        (host,) = host_processes()
        os.kill(host, signal.SIGKILL)
        with pytest.raises(SandboxDied):
            await box.exec("true")
        await box.close()
        async with asyncio.timeout(60):
            while True:
                try:
                    box = await backend.start()
                    break
                except SandboxDied:
                    await asyncio.sleep(0.2)
        assert (await box.exec("echo again")).stdout == b"again\n"
        assert host_processes() != [host]
        await backend.close()

    asyncio.run(body())


def test_a_node_that_is_lost_is_the_machines_fault_and_is_not_asked_again(ray_cluster):
    async def body():
        node = ray_cluster.add_node(resources={"doomed": 2})
        backend = RemoteBackend.open(SandboxConfig(), resource="doomed")
        box = await backend.start()
        ray_cluster.lose_node(node)
        async with asyncio.timeout(60):
            with pytest.raises(SandboxDied):
                while True:
                    await box.exec("true")
            said = ""
            while "every sandbox host of the cluster is gone" not in said:
                with pytest.raises(SandboxDied) as lost:
                    await backend.start()
                said = str(lost.value)
        await backend.close()

    asyncio.run(body())


USER = """
import asyncio, sys, ray
from sandboxrl.rl.cluster.hosts import RemoteBackend
from sandboxrl.envs.sandbox.protocol import SandboxConfig
ray.init(address=sys.argv[1], log_to_driver=False)
async def main():
    backend = RemoteBackend.open(SandboxConfig())
    boxes = [await backend.start() for _ in range(2)]
    for box in boxes:
        await box.exec("setsid sleep 4321 >/dev/null 2>&1 &")
    print("held", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def sleepers() -> int:
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += path.read_bytes() == b"sleep\x004321\x00"
        except OSError:
            continue
    return found


def test_a_killed_user_leaves_nothing_on_the_other_node(ray_cluster):
    user = subprocess.Popen(
        [sys.executable, "-c", USER, ray_cluster.address], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert user.stdout is not None and user.stdout.readline() == b"held\n"
    deadline = time.monotonic() + 10
    while sleepers() < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sleepers() == 2
    user.kill()
    user.wait()
    killed = time.monotonic()
    while sleepers() and time.monotonic() - killed < 2:
        time.sleep(0.02)
    assert sleepers() == 0


def test_a_cluster_without_sandboxes_says_so(ray_cluster):
    with pytest.raises(BackendUnavailable, match="no node"):
        RemoteBackend.open(SandboxConfig(), resource="nowhere")


OWN = """
import time
import beside
from sandboxrl import Tool

def good(task, answer, sandbox): return beside.SCORE
def raises(task, answer, sandbox): raise KeyError("no such thing")
def hangs(task, answer, sandbox): time.sleep(600)
def nan(task, answer, sandbox): return float("nan")
def two(task, answer, sandbox): return 2
def text(task, answer, sandbox): return "1"
async def broken(sandbox, arguments, timeout_s): return 1 / 0
tool = Tool("broken", broken)
class NoBackend: pass
def narrow(logprobs): return logprobs
"""
SAID = {
    "good": "0.5",
    "raises": "raised KeyError: 'no such thing'",
    "hangs": "no score within 5 s",
    "nan": "returned nan, which is no score",
    "two": "returned 2, which is no score",
    "text": "returned '1', which is no number",
    "narrow reward": "must take (task, answer, sandbox)",
    "tool": "ZeroDivisionError",
    "backend": "NoBackend",
    "loss": "must take (logprobs, old",
    "missing": "no_such_package.rewards cannot be imported",
}


def test_a_users_own_parts_work_and_fail_alike_on_a_node_that_does_not_have_their_files(ray_cluster, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "beside.py").write_text("SCORE = 0.5\n")
    file = f"{tmp_path}/own.py"
    code = Code.of([f"{file}:good"])

    def outcomes():
        """What each door says, by name. Sent whole: the node has no tests."""
        from sandboxrl.data.task import Task
        from sandboxrl.envs.grading import Grader, GraderConfig
        from sandboxrl.envs.policy.scripted import MemorySandbox
        from sandboxrl.envs.sandbox.pool import open_backend
        from sandboxrl.envs.tools.tool_set import tool_set
        from sandboxrl.envs.trajectory import ToolCall
        from sandboxrl.rl.grpo import find_policy_loss

        async def graded(grader, *names):
            tasks = [Task("t", "s", "q", "x", f"{file}:{name}") for name in names]
            try:
                grading = (grader.grade(task, "x", MemorySandbox()) for task in tasks)
                return dict(zip(names, await asyncio.gather(*grading, return_exceptions=True), strict=True))
            finally:
                await grader.close()

        def call_tool():
            tools = tool_set("paper", ["finish", f"{file}:tool"])
            asyncio.run(tools.run(ToolCall("broken", {}, "id"), MemorySandbox(), 1.0))

        names = ("good", "raises", "hangs", "nan", "two", "text")
        found = asyncio.run(graded(Grader(GraderConfig(deadline_s=5.0)), *names))
        for name, work in {
            "narrow reward": lambda: Grader(GraderConfig(kinds={"mine": f"{file}:narrow"})),
            "tool": call_tool,
            "backend": lambda: open_backend(SandboxConfig(backend=f"{file}:NoBackend")),
            "loss": lambda: find_policy_loss(f"{file}:narrow"),
            "missing": lambda: plugged("no_such_package.rewards:score", {}, "reward"),
        }.items():
            try:
                found[name] = work()
            except Exception as error:
                found[name] = error
        return {name: str(outcome) for name, outcome in found.items()}

    @ray.remote(resources={RESOURCE: 1})
    def there(code):
        code.install()
        return ray.get_runtime_context().get_node_id(), outcomes()

    here = outcomes()
    shutil.rmtree(tmp_path)  # the other node never had them
    node, said = ray.get(there.remote(code))
    assert node != ray.get_runtime_context().get_node_id()
    for name, expected in SAID.items():
        assert expected in here[name], here[name]
        assert expected in said[name], said[name]


def connections(port: int) -> list[socket.socket]:
    """Of this process, to that port of any machine."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            one = socket.socket(fileno=os.dup(int(name)))
            found += [one] if one.family == socket.AF_INET and one.getpeername()[1] == port else []
        except OSError:
            continue
    return found


def test_a_broken_lease_is_taken_anew(ray_cluster):
    """A hiccup of the network between two machines that are both alive."""

    async def body():
        (host,) = hosts = [ray.remote(SandboxHost).options(num_cpus=0, max_concurrency=64).remote(SandboxConfig(), 3)]
        backend = RemoteBackend(hosts)
        first = await backend.start()
        assert (await first.exec("echo one")).stdout == b"one\n"
        _, port = await host.lease_address.remote()
        for connection in connections(port):
            connection.shutdown(socket.SHUT_RDWR)
        await asyncio.sleep(1)
        with pytest.raises(SandboxDied):
            await first.exec("true")
        await first.close()
        for _ in range(2):
            again = await backend.start()
            assert (await again.exec("echo again")).stdout == b"again\n"
            await again.close()
        assert backend.held == 0
        await backend.close()

    asyncio.run(body())


def test_cancelled_starts_leave_nothing_on_the_host(ray_cluster):
    async def body():
        (host,) = hosts = [ray.remote(SandboxHost).options(num_cpus=0, max_concurrency=64).remote(SandboxConfig(), 3)]
        backend = RemoteBackend(hosts)
        box = await backend.start()
        for delay in (0.0, 0.001, 0.005, 0.02):
            task = asyncio.create_task(backend.start())
            await asyncio.sleep(delay)
            task.cancel()
            for done in await asyncio.gather(task, return_exceptions=True):
                if not isinstance(done, BaseException):
                    await done.close()
        for _ in range(100):
            if await host.count.remote() == 1 and backend.held == 1:
                break
            await asyncio.sleep(0.05)
        assert await host.count.remote() == 1 and backend.held == 1
        await box.close()
        await backend.close()

    asyncio.run(body())
