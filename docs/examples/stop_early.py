"""A hook of your own: `hooks: [stop_early.py:StopEarly]`."""

from statistics import fmean

from sandboxrl import StopRun


class StopEarly:
    """Adds the length of answers to the metrics, and stops a run whose reward stays above 0.99 for three steps."""

    def __init__(self):
        self.solved = 0

    def __call__(self, step, groups, row):
        self.solved = self.solved + 1 if row["reward/mean"] > 0.99 else 0
        if self.solved == 3:
            raise StopRun(f"the reward was above 0.99 for three steps, the last of them step {step}")
        return {"answer/characters": fmean(len(t.answer) for group in groups for t in group.trajectories)}
