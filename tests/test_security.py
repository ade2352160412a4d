"""Nothing is unpickled, no code comes with a model, and a secret of the environment shows up nowhere."""

import ast
import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, SandboxConfig

ROOT = Path(__file__).resolve().parents[1]
UNPICKLES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
ALLOWED = {"rl/learner/sharded.py"}
"""Reads torch's plan of a checkpoint, with an unpickler that lets nothing in but the classes of such a plan."""
FILES = sorted(path for room in ("data", "envs", "rl", "launch") for path in (ROOT / room).rglob("*.py"))
SECRETS = {
    "OPENAI_API_KEY": "sk-planted-3f9c1e",
    "WANDB_API_KEY": "planted-wandb-77aa01",
    "HF_TOKEN": "hf_planted_5510dd",
    "SANDBOXRL_TEST_PASSWORD": "planted-password-9021",
}


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_no_code_comes_with_a_model(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found = {name.split(".")[0] for name in names} & UNPICKLES
            assert not found or str(file.relative_to(ROOT)) in ALLOWED, f"{file}:{node.lineno} imports {found}"
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            value = node.value
            assert isinstance(value, ast.Constant) and value.value is False, f"{file}:{value.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), file


def planted(found: bytes) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret.encode() in found]


def test_a_secret_of_the_environment_is_in_no_file_page_or_line_of_an_evaluation(tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text('{"id": "a", "problem": "What is 1+1?", "answer": "2"}\n')
    words = f"scripted:guess:0 --benchmarks aime25 --data aime25={rows} --repeats 2 --mode llm --out {out}"
    for verb in (["evaluate", *words.split()], ["view", str(out), "--out", str(tmp_path / "page.html")]):
        done = subprocess.run(
            [sys.executable, "-m", "sandboxrl.launch", *verb], cwd=ROOT, capture_output=True, env=os.environ | SECRETS
        )
        assert done.returncode == 0, done.stderr.decode()
        assert not planted(done.stdout + done.stderr)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 2
    assert not {path.name: planted(path.read_bytes()) for path in written if planted(path.read_bytes())}


@pytest.mark.parametrize("backend", ["bubblewrap", "docker"])
def test_a_secret_of_the_environment_is_not_in_a_sandbox(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its environment, in that of any process it sees, or in a file it can read."""
    if backend == "docker" and subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.skip("no Docker daemon")
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    look = (
        "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; "
        "grep -rsa planted /etc /home /root /run /testbed /tmp /var 2>/dev/null | head -c 100000; true"
    )

    async def seen() -> bytes:
        try:
            config = SandboxConfig(backend=backend, image="sandboxrl/base:local" if backend == "docker" else "")
            opened = open_backend(config)
            box = await opened.start()
        except BackendUnavailable as error:
            pytest.skip(str(error))
        try:
            return (await box.exec(look, timeout_s=60)).stdout
        finally:
            await box.close()
            await opened.close()

    found = asyncio.run(seen())
    text = found if isinstance(found, bytes) else str(found).encode()
    assert b"PATH" in text and not planted(text)
    assert not re.search(rb"API_KEY|HF_TOKEN|TEST_PASSWORD", text)
