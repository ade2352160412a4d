"""Gives a language model a computer, measures it there and trains it there.

The names below are what a program of your own needs; each is imported when it is first used. `docs/python.md` shows
them at work, `docs/extend.md` how to replace a part.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "data.errors": ("InputError",),
    "data.prompt": ("Arm", "load_arm"),
    "data.task": ("Task",),
    "envs.grading": ("Grader", "GraderConfig", "GraderFailed"),
    "envs.policy": ("ChatFormat", "EngineLost", "Policy", "Sampling", "TokenPolicy"),
    "envs.policy.endpoint": ("EndpointPolicy",),
    "envs.rollout": ("Environment", "RolloutLimits", "rollout"),
    "envs.sandbox": (
        "Backend",
        "ExecResult",
        "FilePart",
        "FileRefused",
        "Limits",
        "Measured",
        "Parts",
        "Pool",
        "Resources",
        "Sandbox",
        "SandboxConfig",
        "SandboxDied",
        "SandboxEnded",
        "SandboxError",
        "ShellResult",
        "Shells",
        "Snapshot",
        "open_backend",
    ),
    "envs.tools": ("Tool", "ToolRefused", "ToolSet", "tool_set"),
    "rl.config": ("Recipe", "load_recipe"),
    "rl.grpo": ("LossConfig", "token_loss"),
    "rl.hooks": ("StopRun",),
    "rl.run": ("train",),
    "rl.learner.batch": ("Batch", "build_batch"),
    "rl.learner.config": ("LearnerConfig",),
    "envs.trajectory": ("Group", "StopReason", "Tokens", "Trajectory", "read_trajectories"),
}
_HOME = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
