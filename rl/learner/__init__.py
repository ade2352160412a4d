"""From trajectories to new weights: packed rows, the model under FSDP2, the optimizer, checkpoints, publication."""

from sandboxrl.rl.learner.config import LearnerConfig

__all__ = ["LearnerConfig"]
