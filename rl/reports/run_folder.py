"""What a run leaves behind: one JSON object a step, trajectories, a line a person can read, and wandb when asked.

runs/NAME/metrics.jsonl                      one object a step (and one a evaluation without a step, at step 0)
runs/NAME/trajectories/step_000012.jsonl     the groups of a step, one trajectory a line
runs/NAME/trajectories/eval_SET_000012.jsonl
runs/NAME/summary.json                       written when the run ends, however it ends
runs/NAME/log.txt                            the lines of the terminal
"""

import json
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from sandboxrl.data.errors import InputError, one_line
from sandboxrl.data.files import read_jsonl, write_jsonl, write_whole
from sandboxrl.envs.trajectory import Group, StopReason, Trajectory
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.learner.batch import Batch
from sandboxrl.rl.reports.analysis import capability_use
from sandboxrl.rl.reports.events import Journal

TokenText = Callable[[int], str]


class Clock:
    """Seconds of each phase of a step; `lap` closes one."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = now - self.last
        self.last = now


class Log:
    """The run folder's writer. `resume_step` cuts off what a killed run wrote after its last checkpoint."""

    def __init__(self, recipe: Recipe, resume_step: int, token_text: TokenText, out: TextIO = sys.stdout) -> None:
        self.recipe, self.dir, self.token_text, self.out = recipe, recipe.run_dir, token_text, out
        (self.dir / "trajectories").mkdir(parents=True, exist_ok=True)
        self.rows = [row for row in read_jsonl(self.dir / "metrics.jsonl") if row["step"] <= resume_step]
        write_whole(self.dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        self.started = time.monotonic()
        self.last_error = "none"
        self.num_trajectories = sum(int(row.get("trajectories", 0)) for row in self.rows)
        self.num_dropped = sum(int(row.get("dropped", 0)) for row in self.rows)
        self.wall_before = max((row["time/wall_s"] for row in self.rows), default=0.0)
        self.journal = Journal(recipe, resume_step)
        self._fresh()
        self.wandb = _start_wandb(recipe)

    def _fresh(self) -> None:
        """Counters of the step that is being collected."""
        self.step_trajectories: list[Trajectory] = []
        self.step_counts: Counter[str] = Counter()

    def clock(self) -> Clock:
        return Clock()

    # --- events of the trainer ---------------------------------------------------------------------------------

    def consumed(self, group: Group) -> None:
        self.step_trajectories += group.trajectories

    def too_old(self, group: Group) -> None:
        self.step_counts["groups_too_old"] += 1
        self.journal.discarded(group, "too_old")

    def uninformative(self, group: Group) -> None:
        self.step_counts["groups_replaced"] += 1
        self.journal.discarded(group, "uninformative")

    def lost(self, trajectory: Trajectory) -> None:
        """The machine lost an attempt at a trajectory. Told once a kind and step: a dead worker loses many at once."""
        self.step_counts["dropped"] += 1
        self.step_counts[trajectory.stop] += 1
        self.last_error = trajectory.error
        if self.step_counts[trajectory.stop] > 1:
            return
        self.say(f"  lost to the machine ({trajectory.stop}): {trajectory.error}")

    def measure(
        self, step: int, groups: Sequence[Group], batch: Batch, stats: Mapping[str, float], clock: Clock
    ) -> dict[str, Any]:
        """The metrics of a step."""
        trajectories = self.step_trajectories
        seconds = clock.seconds | {"time/step_s": time.monotonic() - clock.started}
        return {
            "step": step,
            **summarise(trajectories),
            "groups/informative": batch.num_informative / len(groups),
            "groups/replaced": self.step_counts["groups_replaced"],
            "groups/too_old": self.step_counts["groups_too_old"],
            "staleness/max": max(g.age(step - 1) for g in groups),
            "trajectories": len(trajectories),
            "dropped": self.step_counts["dropped"],
            **stats,
            **seconds,
            "time/wall_s": self._wall(),
        }

    def step(self, row: dict[str, Any], groups: Sequence[Group], batch: Batch) -> None:
        """Write what `measure` found, and whatever was added to it."""
        step = row["step"]
        self.journal.trained(step, groups)
        self.num_trajectories += row["trajectories"]
        self.num_dropped += self.step_counts["dropped"]
        self._append(row)
        every = self.recipe.save_trajectories_every
        if step in (1, self.recipe.steps) or (every and step % every == 0):
            lines = [
                {"step": step, "group": g.index, "advantage": advantage, **self._trajectory(t)}
                for g, advantages in zip(groups, batch.advantages, strict=True)
                for t, advantage in zip(g.trajectories, advantages, strict=True)
            ]
            write_jsonl(self.dir / "trajectories" / f"step_{step:06d}.jsonl", lines)
        self.say(
            f"step {step:>4}/{self.recipe.steps}  reward {row['reward/mean']:.3f}  "
            f"finished {row.get('stop/finished', 0) + row.get('stop/answered', 0):.0%}  turns {row['turns/mean']:.1f}  "
            f"groups {batch.num_informative}/{len(groups)}  mismatch {row['mismatch/logprob_max']:.0e}  "
            f"{row['time/step_s']:.1f} s (rollout {row['time/rollout_s']:.1f}, "
            f"learn {row['time/learn_s']:.1f}, sync {row['time/sync_s']:.1f})"
        )
        self._fresh()

    def evaluation(self, name: str, step: int, score: float, trajectories: Sequence[Trajectory], wall_s: float) -> None:
        graded = [t for t in trajectories if t.reward is not None]
        row = {
            "step": step,
            f"eval/{name}/score": score,
            f"eval/{name}/num": len(graded),
            f"eval/{name}/lost": len(trajectories) - len(graded),
            f"eval/{name}/wall_s": wall_s,
            **{f"eval/{name}/{key}": value for key, value in summarise(graded).items() if key.startswith("stop/")},
            "time/wall_s": self._wall(),
        }
        self._append(row)
        lines = [{"step": step, **self._trajectory(t)} for t in trajectories]
        write_jsonl(self.dir / "trajectories" / f"eval_{name}_{step:06d}.jsonl", lines)
        self.say(f"evaluation  {name}: {score:.3f} on {len(graded)} trajectories, {wall_s:.0f} s")

    def finish(self, status: str) -> dict[str, Any]:
        """Write `summary.json`: `finished`, or why not."""
        scores = self.eval_scores()
        summary = {
            "status": status,
            "steps": max((row["step"] for row in self.rows), default=0),
            "eval_before": scores.get(0, {}),
            "eval_after": scores[max(scores)] if scores and max(scores) > 0 else {},
            "reward_first": self._reward(first=True),
            "reward_last": self._reward(first=False),
            "wall_s": self._wall(),
            "trajectories": self.num_trajectories,
            "dropped": self.num_dropped + self.step_counts["dropped"],
            "logprob_max": max((row.get("mismatch/logprob_max", 0.0) for row in self.rows), default=0.0),
        }
        write_whole(self.dir / "summary.json", json.dumps(summary, indent=2) + "\n")
        if self.wandb is not None:
            self.wandb.summary.update(summary)
            self.wandb.finish(exit_code=0 if status == "finished" else 1)
        return summary

    def eval_scores(self) -> dict[int, dict[str, float]]:
        """step -> set -> score."""
        scores: dict[int, dict[str, float]] = {}
        for row in self.rows:
            for key, value in row.items():
                if key.startswith("eval/") and key.endswith("/score"):
                    scores.setdefault(row["step"], {})[key.split("/")[1]] = value
        return scores

    def say(self, line: str) -> None:
        print(line, file=self.out, flush=True)
        with (self.dir / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    # --- inside ------------------------------------------------------------------------------------------------

    def _append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with (self.dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.wandb is not None:
            self.wandb.log(row, step=row["step"])

    def _trajectory(self, trajectory: Trajectory) -> dict[str, Any]:
        """JSON of a trajectory with the text of each token, for the page that shows them one by one."""
        row = trajectory.to_dict()
        if trajectory.tokens:
            row["token_text"] = [self.token_text(i) for i in trajectory.tokens.ids.tolist()]
        return row

    def _wall(self) -> float:
        """Seconds of this run, the killed parts before a resume included."""
        return self.wall_before + time.monotonic() - self.started

    def _reward(self, first: bool) -> float | None:
        rewards = [row["reward/mean"] for row in self.rows if "reward/mean" in row]
        return (rewards[0] if first else rewards[-1]) if rewards else None


def summarise(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over trajectories that the machine did not lose; stop reasons as fractions."""
    rewards = [t.reward for t in trajectories if t.reward is not None]
    num = len(trajectories)
    stops = Counter(t.stop for t in trajectories)
    usage = capability_use(trajectories)
    return {
        "reward/mean": statistics.fmean(rewards),
        "reward/std": statistics.pstdev(rewards),
        "score/mean": statistics.fmean(t.score for t in trajectories if t.score is not None),
        **{f"stop/{reason}": stops[reason] / num for reason in StopReason if stops[reason]},
        "turns/mean": statistics.fmean(len(t.turns) for t in trajectories),
        "calls/malformed": _share(call.error != "" for t in trajectories for turn in t.turns for call in turn.calls),
        "tokens/prompt": statistics.fmean(t.num_prompt for t in trajectories),
        "tokens/sampled": statistics.fmean(t.num_sampled for t in trajectories),
        "tokens/environment": statistics.fmean(t.num_environment for t in trajectories),
        "time/environment_share": sum(t.tool_s for t in trajectories) / max(sum(t.wall_s for t in trajectories), 1e-9),
        **{f"usage/{name}": rate for name, rate in usage.items()},
    }


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0


def _start_wandb(recipe: Recipe) -> Any:
    if recipe.wandb.mode == "disabled":
        return None
    import wandb
    from omegaconf import OmegaConf

    try:
        return wandb.init(
            project=recipe.wandb.project,
            name=recipe.name,
            id=_wandb_id(recipe.run_dir),
            resume="allow",
            mode=recipe.wandb.mode,
            dir=str(recipe.run_dir),
            config=OmegaConf.to_container(OmegaConf.structured(recipe)),
        )
    except wandb.errors.Error as error:
        raise InputError(f"wandb.mode={recipe.wandb.mode}: {one_line(error)}") from None


def _wandb_id(run_dir: Path) -> str:
    """Of this run folder: another run of the same name must not be appended to, and a continued one must."""
    file = run_dir / "wandb_id"
    if not file.exists():
        write_whole(file, uuid.uuid4().hex[:12])
    return file.read_text()
