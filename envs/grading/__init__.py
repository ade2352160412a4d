"""From a task and an answer to a score in [0, 1]; what cannot be judged is an error, never a zero."""

from sandboxrl.envs.grading.grader import Grader, GraderConfig
from sandboxrl.envs.grading.kinds import KINDS
from sandboxrl.envs.grading.protocol import GraderFailed, Kind

__all__ = ["KINDS", "Grader", "GraderConfig", "GraderFailed", "Kind"]
