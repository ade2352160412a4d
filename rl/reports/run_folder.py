"""What a run leaves behind: one JSON object per step, trajectories, a line a person can read, and trackers when asked.

runs/NAME/metrics.jsonl                      one object per step, and one per evaluation
runs/NAME/trajectories/step_000012.jsonl     the groups of a step, one trajectory per line
runs/NAME/trajectories/eval_SET_000012.jsonl
runs/NAME/summary.json                       written when the run ends, however it ends
runs/NAME/log.txt                            the lines of the terminal
"""

import json
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from sandboxrl.data.files import read_jsonl, write_jsonl, write_whole
from sandboxrl.data.task import Task
from sandboxrl.envs.trajectory import Group, Trajectory
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.learner.batch import Batch
from sandboxrl.rl.reports.events import Journal
from sandboxrl.rl.reports.live import LiveReport
from sandboxrl.rl.reports.metrics import by_source, lost_correlation, summarise
from sandboxrl.rl.reports.progress import Progress, opened
from sandboxrl.rl.reports.trackers import MAX_COMPLETIONS, completion, follow

TokenText = Callable[[int], str]


PHASES = {"time/rollout_s": "learning", "time/learn_s": "new weights to the engines", "time/sync_s": "saving"}
"""What goes on in a step after the phase that is timed so."""
GROUPS_CORRELATED = 256
"""Over how many groups, at most, losses to the machine are compared with rewards."""


class Clock:
    """Seconds of each phase of a step; `lap` closes one. `next_phase` is told what follows."""

    def __init__(self, next_phase: Callable[[str], None] = lambda phase: None) -> None:
        self.started = self.last = time.monotonic()
        self.seconds: dict[str, float] = {}
        self._next_phase = next_phase

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = now - self.last
        self.last = now
        self._next_phase(PHASES.get(name, ""))


class Log:
    """The run folder's writer. `resume_step` cuts off what a killed run wrote after its last checkpoint."""

    def __init__(
        self, recipe: Recipe, resume_step: int, token_text: TokenText, progress: Progress | None = None
    ) -> None:
        self.recipe, self.dir, self.token_text = recipe, recipe.run_dir, token_text
        self.progress = progress or opened("lines")
        (self.dir / "trajectories").mkdir(parents=True, exist_ok=True)
        self._keep_rows(resume_step)
        self.started = time.monotonic()
        self.last_error = "none"
        self.num_trajectories = sum(int(row.get("trajectories", 0)) for row in self.rows)
        self.num_dropped = sum(int(row.get("dropped", 0)) for row in self.rows)
        self.wall_before = max((row["time/wall_s"] for row in self.rows), default=0.0)
        self.journal = Journal(recipe, resume_step)
        self._num_ended, self._evaluating = 0, False
        self.report = LiveReport(self.dir)
        self._fresh()
        self.lost_of_task: Counter[str] = Counter()
        self.losses: deque[tuple[int, float]] = deque(maxlen=GROUPS_CORRELATED)
        """Of the groups consumed last: trajectories lost to the machine, mean reward."""
        self.trackers = follow(_wanted(recipe), self.dir)
        self._tell_news()

    def _keep_rows(self, last_step: int) -> None:
        """Cut off what was written after the checkpoint of `last_step`."""
        self.rows = [row for row in read_jsonl(self.dir / "metrics.jsonl") if row["step"] <= last_step]
        write_jsonl(self.dir / "metrics.jsonl", self.rows)

    def _fresh(self) -> None:
        """Counters of the step that is being collected."""
        self.step_trajectories: list[Trajectory] = []
        self.step_counts: Counter[str] = Counter()
        self.lost_by_source: Counter[str] = Counter()

    def clock(self) -> Clock:
        """Of the step that begins now."""
        size = self.recipe.groups_per_step * self.recipe.group_size
        self._begin("sampling", size, done=min(size, self._num_ended))
        return Clock(self._begin)

    # --- events of the trainer ---------------------------------------------------------------------------------

    def ended(self, trajectory: Trajectory) -> None:
        """A trajectory has ended, of this step, of a later one or of an evaluation."""
        if not self._evaluating:
            self._num_ended += 1
        self.progress.count(trajectory.num_sampled)

    def consumed(self, group: Group) -> None:
        self.step_trajectories += group.trajectories
        self._num_ended = max(0, self._num_ended - len(group.trajectories))
        if group.rewards:
            self.losses.append((self.lost_of_task.pop(group.task.id, 0), statistics.fmean(group.rewards)))

    def too_old(self, group: Group) -> None:
        self.step_counts["groups_too_old"] += 1
        self.journal.discarded(group, "too_old")
        self.progress.more(self.recipe.group_size)

    def uninformative(self, group: Group) -> None:
        self.step_counts["groups_replaced"] += 1
        self.journal.discarded(group, "uninformative")
        self.progress.more(self.recipe.group_size)

    def lost(self, trajectory: Trajectory) -> None:
        """The machine lost an attempt at a trajectory. Told once a kind and step: a dead worker loses many at once."""
        self.step_counts["dropped"] += 1
        self.step_counts[trajectory.stop] += 1
        self.lost_by_source[trajectory.source] += 1
        self.lost_of_task[trajectory.task_id] += 1
        self.last_error = trajectory.error
        if self.step_counts[trajectory.stop] > 1:
            return
        self.say(f"  lost to the machine ({trajectory.stop}): {trajectory.error}")

    def recovered(self, what: str, line: str) -> None:
        """Something was lost and put right; counted in the next step's row as `recovered/<what>`."""
        self.step_counts[f"recovered/{what}"] += 1
        self.say(f"  {line}")

    def rewind(self, step: int) -> None:
        """The run goes on from the checkpoint of `step`, inside this process: what was written after it is cut off."""
        self._keep_rows(step)
        self.num_trajectories = sum(int(row.get("trajectories", 0)) for row in self.rows)
        self.step_trajectories = []
        self.journal.rewind(step)

    def measure(
        self, step: int, groups: Sequence[Group], batch: Batch, stats: Mapping[str, float], clock: Clock
    ) -> dict[str, Any]:
        """The metrics of a step."""
        trajectories = self.step_trajectories
        seconds = clock.seconds | {"time/step_s": time.monotonic() - clock.started}
        return {
            "step": step,
            **summarise(trajectories),
            **by_source(trajectories, self.lost_by_source),
            **lost_correlation(self.losses),
            "groups/informative": batch.num_informative / len(groups),
            "groups/replaced": self.step_counts["groups_replaced"],
            "groups/too_old": self.step_counts["groups_too_old"],
            "staleness/max": max(g.age(step - 1) for g in groups),
            "trajectories": len(trajectories),
            "dropped": self.step_counts["dropped"],
            "recovered/workers": self.step_counts["recovered/workers"],
            "recovered/learner": self.step_counts["recovered/learner"],
            **stats,
            **seconds,
            "time/wall_s": self._wall(),
        }

    def step(
        self, row: dict[str, Any], groups: Sequence[Group], batch: Batch, learned: Mapping[int, np.ndarray]
    ) -> None:
        """Write what `measure` found, and whatever was added to it. `learned`: place of a trajectory in the batch ->
        the learner's log-probabilities of its sampled tokens."""
        step = row["step"]
        self.journal.trained(step, groups)
        self.num_trajectories += row["trajectories"]
        self.num_dropped += self.step_counts["dropped"]
        self._append(row)
        every = self.recipe.save_trajectories_every
        if step in (1, self.recipe.steps) or (every and step % every == 0):
            all_of_them = [(g, t) for g in groups for t in g.trajectories]
            advantages = [advantage for group in batch.advantages for advantage in group]
            lines = []
            for place, ((g, t), advantage) in enumerate(zip(all_of_them, advantages, strict=True)):
                beside = {"step": step, "group": g.index, "advantage": advantage}
                if place in learned:
                    beside["learner_logprobs"] = [round(float(x), 7) for x in learned[place]]
                lines.append(beside | self._trajectory(t, g.task))
            write_jsonl(self.dir / "trajectories" / f"step_{step:06d}.jsonl", lines)
            self._show("training", step, [(t, g.task) for g, t in all_of_them])
        self.say(
            f"step {step:>4}/{self.recipe.steps}  reward {row['reward/mean']:.3f}  "
            f"finished {row.get('stop/finished', 0) + row.get('stop/answered', 0):.0%}  turns {row['turns/mean']:.1f}  "
            f"groups {batch.num_informative}/{len(groups)}  mismatch {row['mismatch/logprob_max']:.0e}  "
            f"{row['time/step_s']:.1f} s (rollout {row['time/rollout_s']:.1f}, "
            f"learn {row['time/learn_s']:.1f}, sync {row['time/sync_s']:.1f})",
            {"event": "step", **row},
        )
        self._fresh()
        self._renew_report()

    def evaluating(self, name: str, num: int) -> None:
        """An evaluation of so many trajectories begins."""
        self._begin(f"evaluating {name}", num)
        self._evaluating = True

    def evaluation(
        self,
        name: str,
        step: int,
        score: float,
        tasks: Sequence[Task],
        trajectories: Sequence[Trajectory],
        wall_s: float,
    ) -> None:
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
        both = list(zip(trajectories, tasks, strict=True))
        lines = [{"step": step, **self._trajectory(t, task)} for t, task in both]
        write_jsonl(self.dir / "trajectories" / f"eval_{name}_{step:06d}.jsonl", lines)
        self._show(name, step, both)
        self._evaluating = False
        self.say(
            f"evaluation  {name}: {score:.3f} on {len(graded)} trajectories, {wall_s:.0f} s",
            {"event": "evaluation", **row},
        )
        self._renew_report()

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
        self.report.close()
        for tracker in self.trackers:
            tracker.finish(summary)
        self._tell_news()
        return summary

    def eval_scores(self) -> dict[int, dict[str, float]]:
        """step -> set -> score."""
        scores: dict[int, dict[str, float]] = {}
        for row in self.rows:
            for key, value in row.items():
                if key.startswith("eval/") and key.endswith("/score"):
                    scores.setdefault(row["step"], {})[key.split("/")[1]] = value
        return scores

    async def look(self) -> dict[str, Any]:
        """For `status.json`: where the run is, and what is being sampled, the oldest first."""
        now, last = time.monotonic(), self.journal.last
        return {
            "step": max((row["step"] for row in self.rows if "reward/mean" in row), default=0),
            "steps": self.recipe.steps,
            "version": self.journal.version,
            "published": last.get("published"),
            "saved": last.get("saved"),
            "groups_in_flight": [
                {"group": index, "task": task, "for_s": round(now - since, 1)}
                for index, (task, since) in sorted(self.journal.in_flight.items())
            ],
        }

    def say(self, line: str, event: Mapping[str, Any] | None = None) -> None:
        """A line for a person, on the screen and in log.txt; `event` is the same for a machine."""
        self.progress.detail(line, event)
        self.note(line)

    def note(self, text: str) -> None:
        """Into log.txt alone."""
        with (self.dir / "log.txt").open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    # --- inside ------------------------------------------------------------------------------------------------

    def _begin(self, phase: str, total: int = 0, done: int = 0) -> None:
        """Show what goes on now, and how long the rest of the run will take by the last steps."""
        timed = [row for row in self.rows if "time/step_s" in row]
        step, steps = max((row["step"] for row in self.rows), default=0), self.recipe.steps
        now = f"step {min(step + 1, steps)}/{steps} · {phase}" if phase else ""
        self.progress.begin(now, total, done)
        each = statistics.fmean(row["time/step_s"] for row in timed[-5:]) if timed else math.nan
        self.progress.overall(step / max(steps, 1), (steps - step) * each)

    def _renew_report(self) -> None:
        if failure := self.report.renew():
            self.say(f"  report.html was not renewed: {failure}")

    def _append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with (self.dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        for tracker in self.trackers:
            tracker.log(row)
        self._tell_news()

    def _show(self, name: str, step: int, shown: Sequence[tuple[Trajectory, Task]]) -> None:
        """Trajectories for the tables of the trackers."""
        if self.trackers:
            rows = [completion(step, one, task.question, task.gold) for one, task in shown[:MAX_COMPLETIONS]]
            for tracker in self.trackers:
                tracker.completions(name, step, rows)

    def _tell_news(self) -> None:
        for tracker in self.trackers:
            while tracker.news:
                self.say(f"  {tracker.news.pop(0)}")

    def _trajectory(self, trajectory: Trajectory, task: Task) -> dict[str, Any]:
        """JSON of a trajectory with what was asked, the right answer and the text of each token, for the page."""
        row = trajectory.to_dict() | {"question": task.question, "gold": task.gold}
        if trajectory.tokens:
            row["token_text"] = [self.token_text(i) for i in trajectory.tokens.ids.tolist()]
        return row

    def _wall(self) -> float:
        """Seconds of this run, the killed parts before a resume included."""
        return self.wall_before + time.monotonic() - self.started

    def _reward(self, first: bool) -> float | None:
        rewards = [row["reward/mean"] for row in self.rows if "reward/mean" in row]
        return (rewards[0] if first else rewards[-1]) if rewards else None


def _wanted(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The trackers that a recipe asks for: kind -> settings."""
    wanted: dict[str, dict[str, Any]] = {}
    if recipe.wandb.mode != "disabled":
        wanted["wandb"] = {
            "mode": recipe.wandb.mode,
            "project": recipe.wandb.project,
            "name": recipe.name,
            "run_dir": str(recipe.run_dir.resolve()),
            "config": OmegaConf.to_container(OmegaConf.structured(recipe)),
        }
    if recipe.tensorboard:
        wanted["tensorboard"] = {"folder": str((recipe.run_dir / "tensorboard").resolve())}
    return wanted
