"""A model of the hub is one commit on every node, each with a cache of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.rl.hub_model import fetched, local_folder, portable

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cache(folder: Path) -> Path:
    """As the hub's client leaves it."""
    model = folder / "models--some--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    (model / "snapshots" / COMMIT / "config.json").write_text("{}")
    return folder


def on_node(caches: Path, program: str) -> str:
    """What it prints in a process that has this cache and no network."""
    environment = os.environ | {"HF_HUB_CACHE": str(caches), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", f"from sandboxrl.rl.hub_model import *\n{program}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_each_node_finds_the_commit_in_its_own_cache(tmp_path):
    driver, other = cache(tmp_path / "driver"), cache(tmp_path / "other")
    model = on_node(driver, "print(portable(fetched('some/model')))")
    assert model == f"hub:some/model@{COMMIT}"
    found = on_node(other, f"print(local_folder({model!r}, weights=False))")
    assert found == str(other / "models--some--model" / "snapshots" / COMMIT)
    assert portable(found) == model


def test_a_folder_of_ones_own_stays_itself(tmp_path):
    assert portable(str(tmp_path)) == str(tmp_path) == local_folder(str(tmp_path))


def test_what_cannot_be_had_is_one_line(tmp_path):
    program = "try:\n    fetched('no/such')\nexcept Exception as error:\n    print(type(error).__name__, error)"
    said = on_node(tmp_path, program)
    assert said.startswith("InputError model.path: no/such cannot be had from the hub")
    assert "\n" not in said


def test_a_commit_that_a_node_lacks_is_one_line(tmp_path):
    program = f"try:\n    local_folder('hub:some/model@{'f' * 40}')\nexcept InputError as error:\n    print(error)"
    assert "some/model cannot be had" in on_node(cache(tmp_path), program)


def test_names_that_are_no_hub_names_are_refused():
    with pytest.raises(InputError, match="cannot be had"):
        fetched("not a/name")
