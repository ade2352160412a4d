"""What a run leaves can be taken elsewhere: the exported folder, served by vLLM, answers with a tool call, and is
measured on all seven benchmarks in both modes."""

import asyncio
import json
import urllib.request
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.served import benchmark_words, ours, serving
from sandboxrl.envs.policy.chat import ChatFormat
from sandboxrl.launch.__main__ import main
from sandboxrl.rl.config import load_recipe, save_recipe
from sandboxrl.rl.learner.checkpoint import Checkpoints
from sandboxrl.rl.learner.config import LearnerConfig
from tests.rl.evaluation.test_evaluate import needs_bubblewrap
from tests.rl.learner.ranks import on_ranks
from tests.rl.tiny import byte_tokenizer, save, tiny_model

ROOT = Path(__file__).resolve().parents[2]
REPLY = '<tool_call>\n{"name": "bash", "arguments": {"command": "ls /testbed"}}\n</tool_call><|im_end|>'


MESSAGES = [{"role": "user", "content": "What is in /testbed?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "bash",
            "description": "Runs a command.",
            "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
        },
    }
]


def taught_model(folder: Path) -> str:
    """A model that has learned by heart to answer MESSAGES with REPLY."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    model = tiny_model(vocabulary=len(tokenizer)).train()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data /= 4
    reply = tokenizer(REPLY)["input_ids"]
    prompt = ChatFormat(tokenizer).prompt_ids(MESSAGES, TOOLS)
    ids = torch.tensor([prompt + reply])
    labels = torch.tensor([[-100] * len(prompt) + reply])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(250):
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02, loss.item()
    return save(model.eval(), folder)


def save_checkpoint(core: Any, folder: str) -> None:
    core.save(folder)


class Saver:
    def __init__(self, model: str) -> None:
        self.model = model

    async def save(self, path: str) -> Awaitable[None]:
        on_ranks(save_checkpoint, self.model, LearnerConfig(device="cpu"), args=(path,))
        return asyncio.sleep(0)


async def save_whole(checkpoints: Checkpoints, saver: Saver) -> None:
    await checkpoints.save(1, {}, saver)
    await checkpoints.settled()


@pytest.mark.heavy
@pytest.mark.long
def test_an_exported_run_is_served_and_measured_on_all_benchmarks(tmp_path: Path) -> None:
    """One server for all of it: it takes half a minute to start."""
    needs_bubblewrap()
    model = taught_model(tmp_path / "model")
    run, out = tmp_path / "run", tmp_path / "exported"
    run.mkdir()
    save_recipe(load_recipe(ROOT / "recipes" / "tiny.yaml", [f"model.path={model}"]), run / "recipe.yaml")
    asyncio.run(save_whole(Checkpoints(run), Saver(model)))
    assert main(["export", str(run), "--out", str(out)]) == 0

    with serving(out, tmp_path / "serve.log", max_model_len=4096) as url:
        request = {"model": str(out), "messages": MESSAGES, "tools": TOOLS, "temperature": 0, "max_tokens": 100}
        (call,) = answer(url, request)["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "bash"
        assert json.loads(call["function"]["arguments"]) == {"command": "ls /testbed"}

        words = benchmark_words(tmp_path, limit=2, max_tokens=400)
        found = ours(tmp_path, [url, "--model", str(out), *words])
    assert not [name for name, row in found.items() if row["holds"] is False], found
    assert found["served/trajectories"]["ours"] == 6 * 2 * 2 + 1  # SWE-bench has one row and no LLM mode


def answer(url: str, request: dict[str, Any]) -> dict[str, Any]:
    asked = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(request).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as found:
        return dict(json.load(found))
