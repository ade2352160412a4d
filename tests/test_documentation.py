"""Every command that README and docs print: it parses, its recipe resolves, and a test runs it, or its line says that
it needs a GPU or a network."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.launch.__main__ import NESTED, VERBS, main
from sandboxrl.launch.parser import Parser, parser_of
from sandboxrl.rl.config import find_recipe, load_recipe
from sandboxrl.rl.sweep import load_sweep

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = re.compile(r"(sandboxrl|make|python -m|\./recipes/\S+|ray|register-python-argcomplete)( |$)")
MARK = re.compile(r"\((GPU|network)[;)]|\bneeds a (GPU|network)\b")
RUN_BY = {
    # the beginning of a command, as words that may be a pattern -> the tests that run it with their own files
    r"make (train|test)( .*)?": ".ci/run",
    r"sandboxrl train( (RUN|runs/NAME|RECIPE|tiny)( .*)?)?": "tests/launch/test_train.py",
    r"sandboxrl train --replay( .*)?": "tests/rl/test_replay.py",
    r"sandboxrl evaluate --policy .*": "tests/test_examples.py tests/launch/test_evaluate_verb.py",
    r"sandboxrl check backend .*": "tests/test_examples.py",
    r"ray (get-auth-token|start) .*": "tests/rl/cluster/test_connect.py",
    r"sandboxrl evaluate( .*)?": "tests/launch/test_evaluate_folder.py tests/launch/test_evaluate_verb.py",
    r"sandboxrl run( .*)?": "tests/launch/test_run.py",
    r"sandboxrl export( .*)?": "tests/launch/test_train.py",
    r"sandboxrl analyze( .*)?": "tests/launch/test_analyze.py",
    r"make example|sandboxrl view( .*)?": "tests/launch/test_view.py",
    r"sandboxrl data( .*)?": "tests/launch/test_data.py",
    r"sandboxrl sweep( .*)?": "tests/launch/test_sweep_run.py",
    r"sandboxrl check( .*)?": "tests/rl/learner/test_checkpoint.py",
    r"sandboxrl status( .*)?": "tests/rl/test_watch.py",
    r"sandboxrl image( .*)?": "tests/launch/test_image.py",
    r"sandboxrl explain RECIPE": "tests/test_recipes.py",
    r"sandboxrl explain recipes/.*": "tests/launch/test_explain.py",
    r"\./recipes/.*|ray job .*": "tests/launch/test_train.py",
}
RUN_HERE = ("sandboxrl doctor", "sandboxrl explain qwen3_4b", "sandboxrl explain --keys", "sandboxrl explain", "make")
"""Commands that this file runs as they stand."""


def commands(document: Path) -> Iterator[tuple[str, str]]:
    """(command, the line it stands on) of every block and every `code` of a document; continued lines are joined."""
    text = re.sub(r"\\\n\s*", " ", document.read_text())
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif (fenced or line.startswith("    ")) and OURS.match(line.strip()):
            yield re.split(r"\s+#|\s{3,}", line.strip())[0], line
        elif not fenced:
            yield from ((code, line) for code in re.findall(r"`([^`]+)`", line) if OURS.match(code))


COMMANDS = sorted({(command, f"{file.name}", line) for file in DOCUMENTS for command, line in commands(file)})
EXACT = [one for one in COMMANDS if not re.search(r"[…|\\]|\.\.\.|\[", one[0]) and " " in one[0]]
"""Those that are no schema such as `sandboxrl data build|check SOURCE`."""


def test_there_are_commands_to_look_at() -> None:
    assert len(EXACT) > 30 and {name for _, name, _ in EXACT} >= {"README.md", "training.md", "evaluation.md"}


@pytest.mark.parametrize("command", sorted({one for one, _, _ in EXACT if one.startswith("sandboxrl")}))
def test_a_printed_command_is_one(command: str) -> None:
    _, verb, *words = shlex.split(command)
    assert verb in VERBS, command
    if not words:
        return
    parser = parser_of(verb)
    parsed = parser.parse_args(words) if verb in NESTED else parser.parse_intermixed_args(words)
    named = getattr(parsed, "recipe", None) or getattr(parsed, "sweep", None)
    if named and not re.search(r"[A-Z]{3}", named):  # RECIPE and RUN stand for one of the reader's
        file = find_recipe(named, "ablations" if verb == "sweep" else "")
        load_sweep(file, parsed.overrides) if verb == "sweep" else load_recipe(file, parsed.overrides)


@pytest.mark.parametrize("command", sorted({one for one, _, _ in EXACT if one.startswith("python -m bench.")}))
def test_a_printed_measurement_is_there_and_knows_its_options(command: str) -> None:
    words = shlex.split(command)
    text = (ROOT / "bench" / f"{words[2].removeprefix('bench.')}.py").read_text()
    assert all(f'"{word}"' in text for word in words if word.startswith("--")), command


def test_each_command_is_run_by_a_test_or_marked() -> None:
    for command, name, line in EXACT:
        if command in RUN_HERE or command.startswith(("python -m", "register-")) or MARK.search(line):
            continue
        tests = [test for pattern, test in RUN_BY.items() if re.fullmatch(pattern, command)]
        assert tests, f"{name}: no test runs {command!r}, and its line does not say that it needs a GPU or a network"
        text = "".join((ROOT / file).read_text() for file in tests[0].split())
        options = [word for word in command.split() if word.startswith("--")]
        assert all(option in text for option in options), f"{name}: {tests[0]} runs it without some of {options}"


def test_the_commands_that_need_nothing_run(capfd: pytest.CaptureFixture[str]) -> None:
    for command in RUN_HERE:
        if command.startswith("sandboxrl"):
            codes = {"sandboxrl doctor": (0, 1), "sandboxrl explain": (2,)}.get(command, (0,))
            assert main(shlex.split(command)[1:]) in codes, command
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    done = subprocess.run(["make"], cwd=ROOT, env=outside, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("make train "), done.stderr


def test_a_wrong_word_of_a_command_would_be_seen() -> None:
    with pytest.raises(InputError, match="did you mean '--benchmarks'"):
        parser_of("evaluate").parse_intermixed_args(["MODEL", "--benchmark", "a", "--benchmarks", "a", "--out", "b"])
    assert isinstance(parser_of("data"), Parser)
