"""The architecture, as assertions about imports. When one fails, move the code rather than add an exception."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["data", "envs", "rl", "launch"]
"""A room imports only rooms to its left."""
HEAVY = {
    "torch": {"rl"},
    "vllm": {"rl/engine.py", "rl/cpu_worker.py", "rl/weights.py"},
    "ray": {"rl", "launch"},
    "docker": {"envs/docker.py", "launch/image.py"},
    "wandb": {"rl/metrics.py"},
    "openai": {"envs/endpoint.py", "envs/judge.py"},
}
"""Who may import what, by room or by file."""
LIGHT = [
    "launch.__main__",
    "launch.doctor",
    "launch.view",
    "launch.data",
    "launch.evaluate",
    "launch.explain",
    "rl.config",
]
"""Modules that start without any of these."""

FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
TREES = {file.relative_to(ROOT): ast.parse(file.read_text()) for file in FILES}


def imports(tree: ast.AST, depth: int = 0) -> Iterator[tuple[str, int]]:
    """Every import in a module, and how many functions it hides in."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Import):
            yield from ((alias.name, depth) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "absolute imports only"
            assert child.module is not None
            yield child.module, depth
            yield from ((f"{child.module}.{alias.name}", depth) for alias in child.names)
        hides = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(child, depth + hides)


@pytest.mark.parametrize("file", TREES, ids=str)
def test_imports_point_left_and_heavy_ones_keep_their_room(file: Path) -> None:
    for module, depth in imports(TREES[file]):
        top = module.split(".")[0]
        if top in ROOMS:
            assert ROOMS.index(top) <= ROOMS.index(file.parts[0]), f"{file} imports upward: {module}"
            light_verb = file.parts[0] == "launch" or file.parts[0] == "rl"
            assert depth == 0 or light_verb, f"{file} hides an import of {module}: a cycle in disguise"
        if top in HEAVY:
            assert {file.parts[0], file.as_posix()} & HEAVY[top], f"{file} may not import {top}"


def test_no_import_cycles() -> None:
    names = {".".join(file.with_suffix("").parts): tree for file, tree in TREES.items()}
    edges = {name: {m for m, _ in imports(tree) if m in names} - {name} for name, tree in names.items()}
    while leaves := {name for name, out in edges.items() if not out}:
        edges = {name: out - leaves for name, out in edges.items() if name not in leaves}
    assert not edges, f"import cycle among {sorted(edges)}"


def test_no_drawer_without_a_label() -> None:
    for file in TREES:
        assert file.stem not in ("utils", "util", "common", "misc", "helpers", "base"), f"{file}: give it a name"


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    heavy = ["torch", "vllm", "ray", "wandb", "datasets", "transformers", "openai"]
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not loaded.stdout.split(), f"{module} loads {loaded.stdout.strip()}"


def test_the_driver_of_a_run_computes_nothing() -> None:
    """torch takes seconds to import, which every start of every run would wait for."""
    code = "import sys, rl.run; print(*[name for name in ('torch', 'vllm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.split(), f"rl.run loads {done.stdout.strip()}"
