"""What the folder of every finished run holds."""

import json
from pathlib import Path

from sandboxrl.data.files import read_jsonl


def check_finished(run: Path, steps: int, evaluated: str) -> None:
    """`evaluated` is the one set that the run is scored on, before and after."""
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["steps"] == steps
    assert list(summary["eval_before"]) == list(summary["eval_after"]) == [evaluated]
    assert 0 < summary["logprob_max"] < 1e-3
    for name in ("recipe.yaml", "metrics.jsonl", "report.html", "log.txt", "trajectories/step_000001.jsonl"):
        assert (run / name).stat().st_size > 0, name
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    promised = "reward/mean reward/std groups/informative turns/mean tokens/sampled tokens/environment staleness/max"
    promised += " mismatch/logprob_max mismatch/kl loss grad_norm clip_fraction time/step_s time/rollout_s time/learn_s"
    promised += " time/sync_s usage/external usage/files usage/computation"
    assert not set(promised.split()) - set(rows[0])
