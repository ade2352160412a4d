"""Where a run is followed beside its own folder: wandb and TensorBoard, each in a child process that cannot hurt it."""

from sandboxrl.rl.reports.trackers.tracker import MAX_COMPLETIONS, Completion, Following, Tracker, completion, follow

__all__ = ["MAX_COMPLETIONS", "Completion", "Following", "Tracker", "completion", "follow"]
