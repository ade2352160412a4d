"""Published rows through the `datasets` library: the Hub's own layout, and that a commit is what is read.

The Hub here is `tests/data/hub.py` on loopback; the library and its client are the real ones, each in a process of its
own with a cache of its own.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sandboxrl.data.benchmarks import BENCHMARKS, PUBLISHED
from sandboxrl.data.errors import InputError
from sandboxrl.data.hub import PINNED, Origin
from sandboxrl.data.sources import ORIGINS, iter_source, load_source, origin_of
from tests.data.hub import Hub

ROOT = Path(__file__).resolve().parents[2]
A, B, NOWHERE = "a" * 40, "b" * 40, "c" * 40
CARD = """\
---
configs:
- config_name: instruct_pretrain
  data_files:
  - split: train
    path: instruct_pretrain/train-*
- config_name: math_mini
  data_files:
  - split: test
    path: math_mini/test-*
---
# Rows of our own in the published schema
"""


def row(number: int, text: str) -> dict[str, Any]:
    return {
        "id": f"{text}-{number}",
        "domain": "instruct_pretrain",
        "problem_statement": f"What does file {number} of {text} say?",
        "ground_truth": f"{text} says {number} things",
        "input_files": json.dumps({"a.txt": f"{text} {number}\n" * 20, "b.txt": "Nothing."}),
        "qa_type": "free-form completion",
    }


def publish(folder: Path, text: str, num: int = 5) -> Path:
    """A data set as the Hub keeps it: a card, one folder a config, Parquet in shards."""
    (folder / "instruct_pretrain").mkdir(parents=True)
    (folder / "math_mini").mkdir()
    (folder / "README.md").write_text(CARD)
    rows = [row(number, text) for number in range(num)]
    for shard, part in enumerate((rows[:3], rows[3:])):
        name = f"train-{shard:05}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), folder / "instruct_pretrain" / name)
    mini = [{"id": "aime25_0_00", "domain": "math", "problem_statement": f"2+2 in {text}?", "ground_truth": "4"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(mini), folder / "math_mini/test-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub whose `main` of ada/rows and of the paper's evaluation set is commit B."""
    for name in ("ada/rows", PUBLISHED):
        publish(tmp_path / name / A, "first")
        publish(tmp_path / name / B, "second", num=4)
    card = tmp_path / PUBLISHED / B / "README.md"
    for commit in (A, B):  # its configs are called otherwise
        card = tmp_path / PUBLISHED / commit / "README.md"
        card.write_text(card.read_text().replace("config_name: math_mini", "config_name: math"))
    with Hub(tmp_path) as server:
        server.main |= {"ada/rows": B, PUBLISHED: B}
        yield server


def sandboxrl(home: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandboxrl.launch", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


PROGRAM = """
import json, sys
from sandboxrl.data.errors import InputError
from sandboxrl.data.sources import load_source
for spec in json.loads(sys.argv[1]):
    commits = {}
    try:
        print(json.dumps([[task.id for task in load_source({"source": "general", **spec}, [], 0, commits)], commits]))
    except InputError as error:
        print(json.dumps([str(error), commits]))
"""


def load(home: Path, *specs: dict[str, Any], **environment: str) -> list[tuple[Any, dict[str, str]]]:
    """The ids of the tasks of each spec, or why there are none, and the commits that were noted."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(specs)],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


# ---------------------------------------------------------------------------------------------- a folder in its layout


def test_a_folder_in_the_hubs_layout_gives_the_rows_that_its_card_names(tmp_path: Path) -> None:
    folder, alone = publish(tmp_path / "rows", "first"), tmp_path / "alone"
    alone.mkdir()
    (alone / "rows.jsonl").write_text("".join(json.dumps(row(i, "first")) + "\n" for i in range(5)))
    general = {"source": "general", "dataset": str(folder)}
    assert load_source(general) == load_source({"source": "general", "path": str(alone)})
    assert [task.id for task in load_source({**general, "config": "math_mini", "split": "test"})] == ["aime25_0_00"]
    for option, told in (({"config": "nothing"}, "nothing"), ({"revision": "main"}, "revision has no effect on a")):
        with pytest.raises(InputError, match=told) as caught:
            load_source(general | option)
        assert "\n" not in str(caught.value)
    publish(tmp_path / "other", "second")
    folder.rename(tmp_path / "away")
    (tmp_path / "other").rename(folder)
    assert [task.id for task in load_source(general)] == [f"second-{i}" for i in range(5)], "the library keeps nothing"


def test_a_shard_that_is_cut_off_is_one_clear_line(tmp_path: Path) -> None:
    folder = publish(tmp_path / "rows", "first")
    shard = folder / "instruct_pretrain" / "train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"{folder}/instruct_pretrain, after row 3 cannot be loaded") as caught:
        load_source({"source": "general", "dataset": str(folder)})
    assert "\n" not in str(caught.value)


def test_what_save_to_disk_wrote_is_a_local_copy(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([row(i, "first") for i in range(3)])
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "validation": table.select([2])}).save_to_disk(tmp_path / "several")

    def ids(**options: str) -> list[str]:
        return [task.id for task in load_source({"source": "general", **options})]

    assert ids(path=str(tmp_path / "one")) == ids(path=str(tmp_path / "several")) == ["first-0", "first-1", "first-2"]
    assert ids(path=str(tmp_path / "several"), split="validation") == ["first-2"]
    with pytest.raises(InputError, match="split has no effect on a local copy"):
        ids(path=str(tmp_path / "one"), split="validation")


@pytest.mark.parametrize(
    "option", [{"revision": A}, {"dataset": "a/b"}, {"config": "x"}, {"split": "test"}, {"streaming": True}]
)
def test_an_option_of_the_hub_has_no_effect_on_a_local_copy(tmp_path: Path, option: dict[str, Any]) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=f"{next(iter(option))} has no effect on a local copy"):
        load_source({"source": "math", "path": str(tmp_path / "rows.jsonl"), **option})
    with pytest.raises(InputError, match="neither path nor dataset"):
        load_source({"source": "math", "dataset": ""})


# ------------------------------------------------------------------------------------------------------ commits


def test_every_data_set_of_the_hub_is_read_at_a_commit_or_a_name_that_is_looked_up() -> None:
    names = {origin.dataset for origin in ORIGINS.values()} | {PUBLISHED}
    names |= {one.original[0] for one in BENCHMARKS.values()}
    assert set(PINNED) <= names and all(Origin(dataset=name).is_pinned for name in PINNED)
    for name in names - set(PINNED):
        assert Origin(dataset=name).asked == f"{name}@main" and not Origin(dataset=name).is_pinned
    assert origin_of("math", {"revision": "v2"}).asked == "BytedTsinghua-SIA/DAPO-Math-17k@v2"
    commits = {"BytedTsinghua-SIA/DAPO-Math-17k@v2": A}
    assert origin_of("math", {"revision": "v2"}).pinned(commits).revision == A, "one that is known is not looked up"
    origin_of("swe", {}).pinned(commits)
    pinned = PINNED["R2E-Gym/R2E-Gym-Subset"]
    assert commits[f"R2E-Gym/R2E-Gym-Subset@{pinned}"] == pinned, "a commit needs no Hub, and is noted too"


@pytest.mark.parametrize("streaming", [False, True])
def test_the_commit_asked_for_is_the_one_that_is_read(home: Path, hub: Hub, streaming: bool) -> None:
    rows = {"dataset": "ada/rows", "streaming": streaming}
    (first, commits), *_ = load(home, {**rows, "revision": A}, HF_ENDPOINT=hub.url)
    assert first == [f"first-{i}" for i in range(5)] and commits == {f"ada/rows@{A}": A}
    assert not any("/main" in line or B in line for line in hub.asked), hub.asked
    found = load(home, rows, {**rows, "revision": NOWHERE}, {**rows, "dataset": "ada/no"}, HF_ENDPOINT=hub.url)
    assert found[0] == ([f"second-{i}" for i in range(4)], {"ada/rows@main": B})
    assert f"ada/rows@{NOWHERE} cannot be loaded" in found[1][0] and "ada/no@main cannot be loaded" in found[2][0]


def test_without_a_hub_a_commit_that_was_loaded_is_read_and_no_other_in_its_place(tmp_path: Path, hub: Hub) -> None:
    rows = {"dataset": "ada/rows", "revision": A}
    loaded = load(tmp_path / "home", rows, HF_ENDPOINT=hub.url)
    again = load(tmp_path / "home", rows, {**rows, "revision": B}, {"dataset": "ada/rows"}, HF_HUB_OFFLINE="1")
    assert again[0] == loaded[0]
    assert f"is another commit than {B}" in again[1][0] and "ada/rows@main cannot be loaded" in again[2][0]


def test_the_verb_says_which_commit_it_read(tmp_path: Path, home: Path, hub: Hub) -> None:
    words = ("data", "build", "general", "dataset=ada/rows", "streaming=true", "--out", tmp_path / "tasks.jsonl")
    done = sandboxrl(home, *words, HF_ENDPOINT=hub.url)
    assert f"data set ada/rows@main: commit {B}; revision={B} reads these rows again" in done.stdout, done


def test_an_evaluation_that_goes_on_has_the_rows_it_began_with(tmp_path: Path, home: Path, hub: Hub) -> None:
    words = ("evaluate", "scripted:gold", "--benchmarks", "aime25", "--mode", "llm", "--repeats", "1")
    for moved in (B, A):
        hub.main[PUBLISHED] = moved
        done = sandboxrl(home, *words, "--out", tmp_path / "out", HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stderr
        (selection,) = json.loads((tmp_path / "out" / "selection.json").read_text())
        assert selection["commits"] == {f"{PUBLISHED}@main": B} and selection["rows"] == [f"{PUBLISHED}@main:math"]
    assert "1 trajectories, 1 of them done already" in done.stderr
    (result,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert "2+2 in second?" in json.dumps(json.loads(result)) or json.loads(result)["score"] == 1.0


def test_rows_of_the_hub_are_named_with_their_commit(tmp_path: Path) -> None:
    bad: list[Any] = []
    folder = publish(tmp_path / "rows", "first")
    list(iter_source({"source": "math", "dataset": str(folder), "config": "math_mini", "split": "test"}, bad))
    assert [one.where for one in bad] == [f"{folder}/math_mini:1"]


@pytest.mark.parametrize(
    "words",
    [
        ["data", "build", "general", "dataset=ada/rows", "--out", "rows.jsonl"],
        ["train", "tiny", "--dry-run", "model.path=ada/model"],
    ],
    ids=["data", "model"],
)
def test_a_hub_that_takes_connections_and_says_nothing_is_named(words: list[str], home: Path, tmp_path: Path) -> None:
    """Within the time that HF_HUB_ETAG_TIMEOUT gives it; the libraries ask again and again for many minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_ETAG_TIMEOUT": "1"}
        environment |= {"no_proxy": "*", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "sandboxrl.launch", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"the Hub at {url} has not answered within 1 s" in done.stderr
