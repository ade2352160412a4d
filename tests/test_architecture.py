"""The architecture, as assertions about imports. When one fails, move the code rather than add an exception."""

import ast
import re
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
    "vllm": {"rl/engine/vllm.py", "rl/engine/vllm_cpu.py", "rl/learner/weights.py"},
    "ray": {"rl", "launch"},
    "docker": {"launch/image.py"},
    "wandb": {"rl/reports/trackers/wandb.py"},
    "openai": {"envs/policy/endpoint.py", "envs/grading/judge.py"},
}
"""Who may import what, by room or by file."""
LIGHT = [
    "sandboxrl.launch.__main__",
    "sandboxrl.launch.doctor",
    "sandboxrl.launch.view",
    "sandboxrl.launch.data",
    "sandboxrl.launch.evaluate",
    "sandboxrl.launch.explain",
    "sandboxrl.rl.config",
]
"""Modules that start without any of these."""

FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
TREES = {file.relative_to(ROOT): ast.parse(file.read_text()) for file in FILES}


def module_name(file: Path) -> str:
    """`sandboxrl.data.task` for `data/task.py`, `sandboxrl.data` for `data/__init__.py`."""
    return ".".join(["sandboxrl", *file.with_suffix("").parts]).removesuffix(".__init__")


NAMES = {module_name(file): file for file in TREES}
WITH_SUB_ROOMS = {name.rpartition(".")[0] for name, file in NAMES.items() if file.name == "__init__.py"}


def sub_room(module: str) -> str:
    """The package that a module lies in. A room may lie left and right of its sub-rooms: a module beside them, and a
    room itself, is a sub-room of its own."""
    package = module if NAMES[module].name == "__init__.py" else module.rpartition(".")[0]
    return module if package in WITH_SUB_ROOMS else package


def imports(tree: ast.AST, depth: int = 0) -> Iterator[tuple[str, int]]:
    """Every import in a module, and how many functions it hides in."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Import):
            yield from ((alias.name, depth) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "absolute imports only"
            assert child.module is not None
            for alias in child.names:  # `from a import b` is of a module b, else of what a defines
                submodule = f"{child.module}.{alias.name}"
                yield (submodule if submodule in NAMES else child.module), depth
        hides = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(child, depth + hides)


@pytest.mark.parametrize("file", TREES, ids=str)
def test_imports_point_left_and_heavy_ones_keep_their_room(file: Path) -> None:
    for module, depth in imports(TREES[file]):
        top, _, rest = module.partition(".")
        assert top not in (*ROOMS, "bench", "tests"), f"{file}: {module} is sandboxrl.{module}"
        room = rest.split(".")[0]
        if top == "sandboxrl" and room in ROOMS:
            assert ROOMS.index(room) <= ROOMS.index(file.parts[0]), f"{file} imports upward: {module}"
            assert depth == 0 or file.parts[0] in ("rl", "launch"), f"{file} hides an import of {module}"
        if top in HEAVY:
            assert {file.parts[0], file.as_posix()} & HEAVY[top], f"{file} may not import {top}"


def known_imports(module: str) -> set[str]:
    return {name for name, _ in imports(TREES[NAMES[module]]) if name in NAMES} - {module}


def assert_no_cycle(edges: dict[str, set[str]]) -> None:
    while leaves := {name for name, out in edges.items() if not out}:
        edges = {name: out - leaves for name, out in edges.items() if name not in leaves}
    assert not edges, f"import cycle among {edges}"


def test_no_import_cycles() -> None:
    assert_no_cycle({module: known_imports(module) for module in NAMES})


def test_no_import_cycles_among_sub_rooms() -> None:
    edges: dict[str, set[str]] = {}
    for module in NAMES:
        if module.count(".") > 1:
            edges.setdefault(sub_room(module), set()).update(
                sub_room(name) for name in known_imports(module) if name.count(".") > 1
            )
    assert_no_cycle({room: out - {room} for room, out in edges.items()})


def test_tests_look_at_nothing_private() -> None:
    """What a test must know of a class is public, or shows from outside."""
    found = []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "super()"):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names]
            private = [name for name in names if name.startswith("_") and not name.startswith("__")]
            found += [f"{file.relative_to(ROOT)}:{node.lineno}: {name}" for name in private if name != "_exit"]
    assert not found, "\n".join(found)


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
    code = "import sys, sandboxrl.rl.run; print(*[name for name in ('torch', 'vllm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.split(), f"sandboxrl.rl.run loads {done.stdout.strip()}"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize("file", TREES, ids=str)
def test_what_is_long_says_why(file: Path) -> None:
    """A reason stands in the docstring and begins with `Size:`."""
    tree = TREES[file]
    if len((ROOT / file).read_text().splitlines()) > 420:
        assert "Size:" in (ast.get_docstring(tree) or ""), f"{file} is above 420 lines"
    for one in functions(tree):
        long = (one.end_lineno or one.lineno) - one.lineno + 1 > 60 or num_parameters(one) > 8
        assert not long or "Size:" in (ast.get_docstring(one) or ""), f"{file}: {one.name} is long or takes too much"


def test_the_walk_from_a_recipe_to_new_weights_is_short_and_true() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    walk = re.findall(r"^\| \d+ \| \**`([^`]+)`\** \|", page, re.MULTILINE)
    assert 15 <= len(walk) <= 20
    assert [name for name in walk if not (ROOT / name).is_file()] == []
    assert len((ROOT / "AGENTS.md").read_text().splitlines()) < 80


def test_agents_names_every_room() -> None:
    said = (ROOT / "AGENTS.md").read_text()
    rooms = {file.parent.name for file in TREES if file.name == "__init__.py"}
    assert {room for room in rooms if f"`{room}/`" not in said} == set()


@pytest.mark.parametrize("file", [file for file in TREES if file.name == "__init__.py"], ids=str)
def test_every_room_says_what_it_is(file: Path) -> None:
    assert (ast.get_docstring(TREES[file]) or "").endswith(".")
