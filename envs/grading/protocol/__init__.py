"""What every kind of grading shares: the object that a kind is, and where the answer stands in a text."""

from sandboxrl.envs.grading.protocol.kind import (
    Exhausted,
    GraderFailed,
    Judge,
    Kind,
    Means,
    Rubric,
    Sandboxes,
    Score,
    has_gold,
    no_gold,
    no_such_words,
    the_gold,
)

__all__ = [
    "Exhausted", "GraderFailed", "Judge", "Kind", "Means", "Rubric", "Sandboxes", "Score", "has_gold", "no_gold",
    "no_such_words", "the_gold",
]  # fmt: skip
