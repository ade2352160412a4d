"""docs/python.md, block by block, in one process and one namespace, as a reader would type it."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandboxrl
from tests.envs.server import Server, say
from tests.ray_cluster import RayCluster

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n.*?```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
HEAVY = ("Training", "A run's trajectories", "A batch and its loss")


def test_the_page_has_a_block_for_each_promise() -> None:
    assert list(BLOCKS) == ["A pool of sandboxes", "Scoring answers", "One rollout against an endpoint", *HEAVY]


def test_every_public_name_is_there_and_has_a_text() -> None:
    for name in sandboxrl.__all__:
        assert getattr(sandboxrl, name) is not None
    assert "docs/python.md" in (sandboxrl.__doc__ or "")
    assert sorted(dir(sandboxrl)) == sorted(sandboxrl.__all__)


@pytest.fixture
def url() -> Iterator[str]:
    """A server that finishes at once, in a thread with a loop of its own."""
    ready, done = threading.Event(), threading.Event()
    found: list[str] = []

    async def behave(server: Any, request: Any, writer: Any) -> None:
        call = {"id": "a", "type": "function", "function": {"name": "finish", "arguments": "{}"}}
        await say("Done.", tool_calls=[call])(server, request, writer)

    async def serve() -> None:
        async with Server(behave) as server:
            found.append(server.url)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    yield found[0]
    done.set()
    thread.join()


def test_the_light_blocks(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"URL": url}
    for title, code in BLOCKS.items():
        if title not in HEAVY:
            exec(code, names)
    printed = capsys.readouterr().out
    for promised in re.findall(r"print\(.*\)  # (.*)", PAGE):
        assert promised in printed
    assert names["trajectory"].stop == sandboxrl.StopReason.FINISHED and names["trajectory"].reward == 0.0


@pytest.mark.heavy
def test_the_blocks_that_train(tmp_path: Path, ray_cluster: RayCluster) -> None:
    """In a process of their own, on the cluster that is there."""
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"extends: {ROOT}/recipes/tiny.yaml\n"
        "groups_per_step: 2\ngroup_size: 4\nmax_staleness: 0\nreplace_uninformative: 0\n"
        "tasks: {eval: {heldout: {source: builtin, size: tiny, split: heldout, num_tasks: 4}}}\n"
        "evaluation: {every: 0}\nsandbox: {warm: 4}\n"
    )
    blocks = [f"RECIPE = {str(recipe)!r}", *(BLOCKS[title] for title in HEAVY)]
    blocks.append('assert summary["status"] == "finished"\nassert sum(map(len, groups.values())) == 8\n')
    there = os.environ | {"RAY_ADDRESS": ray_cluster.address}
    command = [sys.executable, "-c", "\n".join(blocks)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=there)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
