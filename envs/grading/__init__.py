"""From a task and an answer to a score in [0, 1]; what cannot be judged is an error, never a zero."""

from sandboxrl.envs.grading.grader import Grader, GraderConfig, GraderFailed

__all__ = ["Grader", "GraderConfig", "GraderFailed"]
