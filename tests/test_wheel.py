"""The wheel, installed beside a user's own files that are called like the rooms of this project."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.rl.tiny import byte_tokenizer, save, tiny_model

ROOT = Path(__file__).resolve().parents[1]
OWN = ("data.py", "rl.py", "launch.py", "envs/__init__.py", "recipes/__init__.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as building writes into its folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that holds the wheel; what it depends on comes from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: importing any of its files is an error."""
    for name in OWN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"raise SystemExit('the user\\'s own {name} was run')\n")
    return tmp_path


def sandboxrl(python: Path, folder: Path, *words: object) -> str:
    done = subprocess.run(
        [python, "-m", "sandboxrl.launch", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_one_package_with_real_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"sandboxrl"}
    ours = subprocess.run(["git", "ls-files", "data", "envs", "rl", "launch"], cwd=ROOT, capture_output=True, text=True)
    sources = {f"sandboxrl/{name}" for name in ours.stdout.split() if name.endswith(".py")}
    assert sources <= set(names)
    for needed in ("recipes/tiny.yaml", "data/prompt/templates/paper.yaml", "recipes/ablations/tiny/math.jsonl"):
        assert f"sandboxrl/{needed}" in names
    assert not any(part in name.split("/") for part in ("bench", "tests", "docs") for name in names)


def test_light_verbs_run_from_the_wheel_beside_files_of_the_same_names(python: Path, folder: Path) -> None:
    assert "train" in sandboxrl(python, folder, "--help")
    sandboxrl(python, folder, "data", "build", "builtin", "num_tasks=3", "--out", "tasks.jsonl")
    code = "import sandboxrl; print(sandboxrl.__file__, sandboxrl.load_recipe.__module__)"
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0].startswith(str(python.parents[1]))


@pytest.mark.heavy
def test_the_wheel_trains_evaluates_shows_and_exports(python: Path, folder: Path) -> None:
    model = save(tiny_model(vocabulary=len(byte_tokenizer())), folder / "model")
    byte_tokenizer().save_pretrained(model)
    small = (
        "steps=2 groups_per_step=2 group_size=2 learner.minibatches=1 max_staleness=0 replace_uninformative=0 "
        "limits.max_turns=2 limits.max_tokens=1024 limits.max_tokens_per_turn=16 tasks.max_prompt_tokens=1000 "
        "tasks.eval.heldout.num_tasks=2 evaluation.every=0 checkpoint.every=1 sandbox.warm=2 engine.max_num_seqs=4"
    )
    sandboxrl(python, folder, "train", "tiny", "name=mine", "model.path=model", *small.split())
    assert (folder / "runs" / "mine" / "report.html").stat().st_size > 10_000
    sandboxrl(python, folder, "view", "runs/mine", "--out", "page.html")
    sandboxrl(python, folder, "export", "runs/mine", "--out", "exported")
    (folder / "rows.jsonl").write_text('{"id": 1, "problem": "What is 1+1?", "answer": "2"}\n')
    words = "--benchmarks aime25 --data aime25=rows.jsonl --mode llm --repeats 1 limits.max_tokens=200 --out results"
    sandboxrl(python, folder, "evaluate", "exported", *words.split())
    assert (folder / "results" / "summary.json").is_file()
