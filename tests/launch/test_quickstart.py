"""The folder that the quickstart left (`.ci/run` makes it, shortened, and names it), instead of training again."""

import os
from pathlib import Path

import pytest

from sandboxrl.launch.__main__ import main
from tests.launch.promises import check_finished


@pytest.fixture
def run() -> Path:
    named = os.environ.get("SANDBOXRL_QUICKSTART_RUN")
    if not named:
        pytest.skip("SANDBOXRL_QUICKSTART_RUN names no run folder of the quickstart")
    return Path(named)


def test_the_run_leaves_what_it_promises(run: Path) -> None:
    check_finished(run, steps=4, evaluated="heldout")
    assert (run / "report.html").stat().st_size > 10_000


def test_it_is_exported_shown_and_analyzed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "model")]) == 0
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
        file.name for file in (tmp_path / "model").iterdir()
    }
    assert main(["view", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert main(["check", "run", str(run)]) == 0
    assert "step_000004" in capsys.readouterr().out
