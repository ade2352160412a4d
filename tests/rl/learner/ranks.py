"""Runs a function on every rank of a small learner, each rank a process of its own."""

import multiprocessing
import time
import traceback
from collections.abc import Callable
from typing import Any

from sandboxrl.rl.grpo import LossConfig
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.learner.learner import Learner
from sandboxrl.rl.learner.weights import free_port


def on_ranks(
    work: Callable[..., Any],
    model: str,
    config: LearnerConfig,
    loss: LossConfig | None = None,
    args: tuple[Any, ...] = (),
    late_s: float = 0.0,
) -> list[Any]:
    """`work(core, *args)` on every rank, a module-level function of a test file; answers in rank order. Rank 0 comes
    `late_s` after the others."""
    context = multiprocessing.get_context("forkserver")  # torch and the rest are imported once, not once per rank
    context.set_forkserver_preload(["tests.rl.learner.test_learner"])
    address, answers = f"127.0.0.1:{free_port()}", context.SimpleQueue()
    setup = (address, model, loss or LossConfig())
    processes = [
        context.Process(target=_rank, args=(rank, config, setup, work, args, answers, 0 if rank else late_s))
        for rank in range(config.world_size)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(answers.get() for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=30)
            process.kill()
    for rank, (_, error) in found.items():
        assert not error, f"rank {rank}: {error}"
    return [found[rank][0] for rank in range(config.world_size)]


def _rank(
    rank: int, config: LearnerConfig, setup: Any, work: Callable[..., Any], args: Any, answers: Any, late_s: float
) -> None:
    try:
        time.sleep(late_s)
        core = Learner(rank, config)
        core.setup(*setup)
        answer, error = work(core, *args), ""
        core.close()
    except BaseException:
        answer, error = None, traceback.format_exc()
    answers.put((rank, (answer, error)))
