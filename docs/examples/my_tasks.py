"""A source of your own: `tasks.train.sums: {source: my_tasks.py:sums, digits: 3, num_tasks: 500}`."""

import itertools
import random

from sandboxrl.data.task import Task


def sums(digits: int = 2, seed: int = 0):
    """Endless; `num_tasks` ends it. The run's seed is given where `seed` is not."""
    rng = random.Random(seed)
    for number in itertools.count():
        a, b = (rng.randrange(10**digits) for _ in range(2))
        yield Task(f"sum-{number}", "sums", f"What is {a} + {b}?", str(a + b), "number")
