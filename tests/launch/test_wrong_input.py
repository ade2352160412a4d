"""Thousands of wrong command lines, files and environments through all verbs, in process: each is one line and an exit
code, none a traceback or a hang, and nothing is written outside the place that the command names."""

import errno
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxrl.data.errors import is_machine_fault
from sandboxrl.launch.__main__ import VERBS, main
from tests.launch.wrong_files import make_files

ROOT = Path(__file__).resolve().parents[2]

NUM_CASES = 2000
KEYS = ["steps", "learner.learning_rate", "sandbox.warm", "tasks.train", "tasks.eval", "name", "out", "model.path",
        "limits", "engine.dtype", "prompt", "tools", "hooks", "grader.scheme", "sampling.top_p", "loss.advantage",
        "stpes", "seed", "model.chat_template", "sandbox.rootfs", "sandbox.backend", "cluster",
        "checkpoint.best"]  # fmt: skip
VALUES = ["", "3", "-1", "nan", "1e999", "???", "on", "true", "[1, 2", "{a: 1, a: 2}", "{a: {b: c}}", "null", "x" * 300,
          "日本", "../up", "0", "1e3", "${oc.env:NOWHERE}", "${steps}", "a:b", "my.py:f", "no.module:f", "9" * 20,
          "start:tiny@x", "start:nope", "\x1b[31m", "a\nb", "'", '"', "!!python/object:os.system", "&a *a",
          "{builtin: 3}", "{x: {source: builtin, size: huge}}", "{x: {source: files, path: FILE}}", "FILE"]  # fmt: skip
ENVIRONMENTS = [{}, {"COLUMNS": "x"}, {"COLUMNS": "1"}, {"TERM": "dumb"}, {"HOME": "/nowhere"}, {"LANG": "C"},
                {"RAY_ADDRESS": "nowhere:1"}, {"HF_HOME": "/dev/null"}, {"OMP_NUM_THREADS": "many"},
                {"TMPDIR": "/nowhere"}]  # fmt: skip


def words_of(rng: random.Random, files: list[str]) -> list[str]:
    """A command line that cannot do anything useful."""
    file = lambda: rng.choice(files)  # noqa: E731
    key = lambda: f"{rng.choice(KEYS)}={rng.choice(VALUES).replace('FILE', file())}"  # noqa: E731
    keys = [key() for _ in range(rng.randint(0, 3))]
    out = rng.choice(["target/new", "target/deep/er/new", "target/old", *files])
    options = {
        "train": [rng.choice([file(), "tiny", "tyni"]), *keys, *rng.sample(["--fresh", "--json", "--quiet"], 1)],
        "evaluate": [
            rng.choice([file(), "scripted:gold", "scripted:x", "http://127.0.0.1:9/v1"]), "--benchmarks",
            rng.choice(["", ",", "aime25", "aime25,nope", "ifbench"]), "--data", f"aime25={file()}", "--out", out,
            "--mode", rng.choice(["llm", "sandbox", "none"]), "--parallel", rng.choice(["0", "1", "x"]),
            "limits.max_turns=0", *keys,
        ],
        "run": ["--prompt", rng.choice(["", "hello", f"@{file()}"]), "--output", out, "--model", file(), "--max-turns",
                rng.choice(["0", "-1", "x"])],
        "sweep": [file(), "--dry-run", *[f"{rng.choice(['seeds', 'set.steps', 'arms.a.steps', 'axes', 'x'])}={v}"
                                        for v in rng.sample(VALUES, 1)]],
        "export": [file(), "--out", out, *(["--step", rng.choice(["1", "x", "-3"])] if rng.random() < 0.5 else [])],
        "analyze": [rng.choice([file(), f"a={file()}", f"a={file()}+{file()}"]), "--out", out],
        "view": [file(), "--out", "target/page.html"],
        "data": [rng.choice(["build", "check", "nothing"]), file(), *keys, "--out", out],
        "explain": [file(), *keys, *rng.sample(["--keys", "--kyes"], 1)],
        "doctor": ["--nothing"],
        "image": [rng.choice(["build", "check", "x"]), "--socket", file(), "--wheels", file()],
        "check": [rng.choice(["run", "backend", "x"]), rng.choice([file(), "no.module:f", f"{file()}:f"])],
        "status": [file()],
    }  # fmt: skip
    verb = rng.choice([*VERBS, "trian", "-v", ""])
    words = [verb, *options.get(verb, [file()])]
    for _ in range(rng.choice([0, 0, 1, 2])):  # and something lost, doubled or out of its place
        index = rng.randrange(len(words))
        words[index : index + 1] = rng.choice([[], [words[index]] * 2, ["--"], [file()], ["--nope"]])
    harmless = {"train": ["steps=-1"], "view": ["--out", "target/page.html"]}  # no run starts, no file is replaced
    return [*words, *harmless.get(words[0] if words else "", [])]


def tree(root: Path) -> dict[str, int]:
    """Every file outside `target`, with its size; pages lie beside what they show."""
    return {
        str(path.relative_to(root)): path.lstat().st_size
        for path in root.rglob("*")
        if path.relative_to(root).parts[0] != "target" and path.suffix != ".html" and not path.is_dir()
    }


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.mark.timeout(600)
def test_whatever_is_wrong_is_one_line_and_an_exit_code(
    room: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = make_files(room)
    before = tree(room)
    rng = random.Random(13)
    codes: dict[int, int] = {0: 0, 1: 0, 2: 0}
    for number in range(NUM_CASES):
        words, environment = words_of(rng, files), rng.choice(ENVIRONMENTS)
        started = time.monotonic()
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            code = main(words)
        told, what = capfd.readouterr(), f"case {number}: {words} in {environment}"
        assert time.monotonic() - started < 20, f"{what} took {time.monotonic() - started:.0f} s"
        assert code in codes, f"{what}: exit code {code}"
        for text in (told.out, told.err):
            assert "Traceback" not in text and "internal error" not in text, f"{what}\n{told.err[-3000:]}"
        if code == 2:
            assert told.err.count("\n") == 1 and told.err.startswith("sandboxrl"), f"{what}\n{told.err[-3000:]}"
        codes[code] += 1
        assert tree(room) == before, f"{what} changed {tree(room).items() ^ before.items()}"
    assert codes[2] > NUM_CASES / 2, codes


def test_a_fault_of_the_machine_is_exit_code_1() -> None:
    words = [sys.executable, "-m", "sandboxrl.launch", "explain", "--keys"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "sandboxrl explain: No space left on device")
    assert is_machine_fault(OSError(errno.ENOSPC, "")) and not is_machine_fault(OSError(errno.EACCES, ""))


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_needs_no_more_than_ascii(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"] if verb else ["--help"]) == 0
    assert "usage: sandboxrl" in capfd.readouterr().out


def test_the_version_and_the_nearest_verb(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capfd.readouterr().out.startswith("sandboxrl ")
    assert main(["trian", "tiny"]) == 2
    assert capfd.readouterr().err == "sandboxrl: unknown verb 'trian'; did you mean 'train'?\n"


def test_options_and_words_stand_in_any_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--fresh", "tiny", "--quiet", "stpes=3"]) == 2
    assert "did you mean 'steps'" in capfd.readouterr().err
