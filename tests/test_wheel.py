"""The wheel, installed beside a user's own files that are called like the rooms of this project."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.util.state import list_actors

from sandboxrl.data.files import read_jsonl
from tests.own_files import ROOT, copy_of_the_checkout, put_own_files
from tests.ray_cluster import RayCluster
from tests.small_run import words


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as building writes into its folder."""
    source, out = copy_of_the_checkout(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel")
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
    put_own_files(tmp_path)
    return tmp_path


def outside() -> dict[str, str]:
    """The environment of a user's shell, which knows nothing of this checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def sandboxrl(python: Path, folder: Path, *words: object) -> str:
    done = subprocess.run(
        [python, "-m", "sandboxrl.launch", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=outside(),
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


CLUSTER = """
import sys
from sandboxrl.rl.cluster.jobs import own_cluster
with own_cluster() as cluster:
    second = cluster.add_node(num_cpus=2, resources={"second": 1}, dashboard_agent_listen_port=0)
    print(cluster.address, cluster.webui_url, second.node_id, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def two_nodes(python: Path, folder: Path, ray_cluster: RayCluster) -> Iterator[tuple[str, str, str]]:
    """A cluster of the wheel's, started beside the user's files: its address, that of its dashboard, and the id of its
    second node, which offers `second`. It has the token of `ray_cluster`: a process knows one."""
    with subprocess.Popen(
        [python, "-c", CLUSTER], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=outside()
    ) as running:
        assert running.stdout is not None
        address, dashboard, second = running.stdout.readline().split()
        yield address, f"http://{dashboard}", second
        running.communicate("")


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_wheel_trains_evaluates_shows_and_exports(
    python: Path, folder: Path, two_nodes: tuple[str, str, str], model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline without a computer is trained, its engine on a second Ray node, and both modes are measured."""
    address, dashboard, second = two_nodes
    monkeypatch.setenv("RAY_ADDRESS", address)
    apart = {"engine__nodes": "second", "engine__weight_backend": "tcp"}
    sandboxrl(python, folder, "train", "llm_rl", *words(Path("runs"), model_folder, name="mine", **apart))
    assert (folder / "runs" / "mine" / "report.html").stat().st_size > 10_000
    assert {row["mode"] for row in read_jsonl(folder / "runs/mine/trajectories/step_000001.jsonl")} == {"llm"}
    workers = list_actors(address=dashboard, filters=[("class_name", "=", "RolloutWorker")])
    assert {worker.node_id for worker in workers} == {second}
    sandboxrl(python, folder, "view", "runs/mine", "--out", "page.html")
    sandboxrl(python, folder, "export", "runs/mine", "--out", "exported")
    (folder / "rows.jsonl").write_text('{"id": 1, "problem": "What is 1+1?", "answer": "2"}\n')
    asked = "--benchmarks aime25 --data aime25=rows.jsonl --mode both --repeats 1 --arm compact limits.max_turns=2"
    asked += " limits.max_tokens=4000 limits.max_tokens_per_turn=24 --out results"
    sandboxrl(python, folder, "evaluate", "exported", *asked.split())
    assert (folder / "results" / "summary.json").is_file()
