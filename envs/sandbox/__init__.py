"""The computer a model is given: one protocol, its backends and a pool of started ones."""

from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import (
    Backend,
    BackendUnavailable,
    ExecResult,
    FilePart,
    FileRefused,
    Limits,
    Measured,
    Parts,
    Resources,
    Sandbox,
    SandboxConfig,
    SandboxDied,
    SandboxEnded,
    SandboxError,
    ShellResult,
    Shells,
    Snapshots,
)
from sandboxrl.envs.sandbox.snapshot import Snapshot

__all__ = [
    "Backend",
    "BackendUnavailable",
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
    "Snapshots",
    "open_backend",
]
