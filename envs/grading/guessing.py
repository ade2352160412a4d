"""A guesser per kind: what the question by itself gives away, for `sandboxrl data check`.

It never looks at documents. What it scores says how much of a set's score needs no reading: a choice by the longest
option or by the words it shares with the question, a number of the question, the question's own words, and the gold
that is most common in the set.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from sandboxrl.data.context import plain
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.protocol import Kind

KEPT = 10
"""Tasks of a kind that are kept to be looked at."""


@dataclass
class Guesses:
    """The scores of each guess, by kind."""

    scores: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    golds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    given_away: list[tuple[str, str]] = field(default_factory=list)
    """(Task id, how) of the first tasks that a guess from the question alone gets right, where that is no chance."""

    def add(self, task: Task, kind: Kind) -> None:
        """Guess a task of a kind that is a pure function of the answer."""
        if kind.score is None:
            return
        self.golds[task.reward][task.gold] += 1
        for name, answer in guesses(task):
            score = kind.score(task, answer, None)
            assert isinstance(score, int | float)
            self.scores[task.reward, name].append(float(score))
            chance = bool(task.options) or re.fullmatch(r"\W*\w{1,3}\W*", task.gold)
            if score == 1.0 and not chance and len(self.given_away) < KEPT:
                self.given_away.append((task.id, f"{name} {answer[:60]!r} is right"))

    def told(self) -> list[tuple[str, str]]:
        """(What was guessed, how well) lines."""
        lines = []
        for (reward, name), scores in sorted(self.scores.items()):
            lines.append((f"{reward}, by {name}", f"{100 * sum(scores) / len(scores):.1f} on {len(scores):,} tasks"))
        for reward, golds in sorted(self.golds.items()):
            gold, count = golds.most_common(1)[0]
            share = 100 * count / golds.total()
            lines.append((f"{reward}, always the same", f"{share:.1f} by {gold[:40]!r}"))
        return lines


def guesses(task: Task) -> Iterator[tuple[str, str]]:
    """(How it is guessed, the guess)."""
    asked = set(plain(task.question).split())
    if task.options:
        letters = task.letters()
        lengths = [len(option) for option in task.options]
        shared = [len(asked & set(plain(option).split())) for option in task.options]
        yield "the longest option", letters[lengths.index(max(lengths))]
        yield "the words of the question", letters[shared.index(max(shared))]
    elif numbers := re.findall(r"-?\d[\d,]*(?:\.\d+)?", task.question):
        yield "the last number of the question", numbers[-1].rstrip(",")
    if not task.options:
        yield "the question itself", task.question
