"""wandb as a tracker: curves over the run's own step, trajectories as tables, one wandb run per run folder.

A run that was killed tells some steps again when it goes on. wandb's own step must only rise and drops what comes late,
so it is left alone: every curve has `step` as its x-axis (`define_metric`), and a step told twice is there twice.
"""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxrl.data.errors import InputError, one_line
from sandboxrl.rl.reports.trackers.tracker import Completion, Tracker


class Wandb:
    def __init__(self, run: Any, table: Any) -> None:
        self._run, self._table = run, table
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")

    def log(self, row: Mapping[str, float]) -> None:
        self._run.log(dict(row))

    def completions(self, name: str, step: int, rows: Sequence[Completion]) -> None:
        columns = list(Completion.__annotations__)
        data = [[row[key] for key in columns] for row in rows]  # type: ignore[literal-required]
        self._run.log({f"completions/{name}": self._table(columns=columns, data=data), "step": step})

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if summary["status"] == "finished" else 1)


def open_wandb(mode: str, project: str, name: str, run_dir: str, config: Mapping[str, Any]) -> tuple[Tracker, str]:
    """Start or continue the wandb run of a run folder. `online` without its server becomes `offline`, and the returned
    line says so. Raises InputError where the user must log in."""
    import wandb

    options: dict[str, Any] = {
        "project": project,
        "name": name,
        "id": wandb_id(Path(run_dir)),
        "resume": "allow",
        "dir": run_dir,
        "config": dict(config),
        "mode": mode,
        "settings": wandb.Settings(console="off", silent=True, x_disable_stats=True, init_timeout=30),
    }
    try:
        return Wandb(wandb.init(**options), wandb.Table), ""
    except wandb.errors.CommError as error:
        run = wandb.init(**options | {"mode": "offline"})
        news = f"its server does not answer ({one_line(error)}); the run is recorded offline in {run_dir}/wandb"
        return Wandb(run, wandb.Table), news
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise InputError(f"wandb.mode={mode}: {one_line(error)}") from None


def wandb_id(run_dir: Path) -> str:
    """Of this run folder: another run of the same name must not be appended to, and a continued one must."""
    file = run_dir / "wandb_id"
    if not file.exists():
        new = file.with_name(".wandb_id.new")
        new.write_text(uuid.uuid4().hex[:12])
        new.replace(file)
    return file.read_text()
