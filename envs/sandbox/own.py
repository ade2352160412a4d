"""A backend of the user's own, held to the protocol: what it raises or gives back can lose a trajectory, and nothing
else. Its faults are the machine's, never the model's."""

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sandboxrl.data.errors import InputError, described
from sandboxrl.data.plugin import takes
from sandboxrl.envs.sandbox.protocol import (
    WORKDIR,
    Backend,
    ExecResult,
    FilePart,
    Resources,
    Sandbox,
    SandboxConfig,
    SandboxDied,
    SandboxError,
    ShellResult,
)
from sandboxrl.envs.sandbox.snapshot import Snapshot

T = TypeVar("T")
GRACE_S = 30.0
"""For a call, beyond its command's own time limit."""
FILES_S = 60.0
START_S = 600.0
OPTIONAL: Mapping[str, type] = {
    "pack": tuple,
    "unpack": object,
    "read_part": FilePart,
    "shell": ShellResult,
    "resources": Resources,
    "snapshot": Snapshot,
    "restore": object,
    "fork": list,
}
"""Method of a sandbox that need not have it, and what it gives back."""
METHODS = {"start": ("image",), "close": ()}

_log = logging.getLogger(__name__)


def wrong_shape(found: Any) -> str:
    """What is wrong with a user's backend class, or empty."""
    if wrong := takes(found, ("config",)):
        return wrong
    for name, arguments in METHODS.items():
        method = getattr(found, name, None)
        if isinstance(found, type) and (method is None or not asyncio.iscoroutinefunction(method)):
            return f"its {name}({', '.join(arguments)}) must be an async method"
    return ""


class OwnBackend:
    """A user's backend (`sandboxrl.envs.sandbox.protocol.Backend`) under the name that a recipe gave it."""

    def __init__(self, inner: Backend, name: str) -> None:
        self._inner, self.name = inner, name

    async def start(self, image: str = "") -> Sandbox:
        box = await _held(self.name, START_S, object, self._inner, "start", image)
        missing = [name for name in ("exec", "read", "write", "close") if not callable(getattr(box, name, None))]
        if missing:
            raise SandboxDied(f"{self.name}: start() gave back what has no {', '.join(missing)}")
        return _OwnSandbox(box, self.name)

    async def close(self) -> None:
        await _held(self.name, GRACE_S, object, self._inner, "close")

    def describe_limits(self) -> dict[str, str]:
        """What the user's backend says of its limits."""
        said: Mapping[Any, Any] = getattr(self._inner, "describe_limits", dict)()
        return {str(name): str(held) for name, held in said.items()}


class _OwnSandbox:
    """A user's sandbox. What it need not have (OPTIONAL) is there if it has it."""

    def __init__(self, inner: Any, name: str) -> None:
        self._inner, self._name = inner, name
        self.id = str(getattr(inner, "id", f"{name}:{id(inner):x}"))
        for method, kind in OPTIONAL.items():
            if callable(getattr(inner, method, None)):
                call = self._fork if method == "fork" else functools.partial(self._optional, method, kind)
                setattr(self, method, call)

    async def _optional(self, method: str, kind: type[T], *words: Any, **options: Any) -> T:
        within_s = FILES_S if "timeout_s" not in options else options["timeout_s"] + GRACE_S
        return await _held(self._name, within_s, kind, self._inner, method, *words, **options)

    async def _fork(self, num_forks: int = 1) -> list[Sandbox]:
        forks = await self._optional("fork", list, num_forks)
        return [_OwnSandbox(box, self._name) for box in forks]

    @property
    def alive(self) -> bool:
        return bool(getattr(self._inner, "alive", True))

    async def exec(
        self,
        command: str,
        timeout_s: float = 120.0,
        cwd: str = WORKDIR,
        env: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> ExecResult:
        options: dict[str, Any] = {"timeout_s": timeout_s, "cwd": cwd, "env": env, "max_bytes": max_bytes}
        return await _held(self._name, timeout_s + GRACE_S, ExecResult, self._inner, "exec", command, **options)

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        data = await _held(self._name, FILES_S, bytes, self._inner, "read", path, max_bytes=max_bytes)
        if len(data) > max_bytes:
            raise SandboxDied(f"{self._name}: read() gave back more than max_bytes={max_bytes}")
        return data

    async def write(self, files: Mapping[str, bytes]) -> None:
        await _held(self._name, FILES_S, object, self._inner, "write", files)

    async def close(self) -> None:
        await _held(self._name, FILES_S, object, self._inner, "close")


async def _held(name: str, within_s: float, kind: type[T], owner: Any, method: str, *words: Any, **options: Any) -> T:
    """What the user's method gives back. Raises SandboxDied for whatever else it does; its SandboxErrors, and a
    ValueError about an argument, pass."""
    try:
        found = await asyncio.wait_for(getattr(owner, method)(*words, **options), within_s)
    except (SandboxError, ValueError):
        raise
    except TimeoutError as error:
        raise SandboxDied(f"{name}: {method}() took more than {within_s:.0f} s") from error
    except Exception as error:
        _log.exception("%s: %s() failed", name, method)
        raise SandboxDied(f"{name}: {method}(): {described(error)}") from error
    if not isinstance(found, kind):
        raise SandboxDied(f"{name}: {method}() gave back {type(found).__name__}, not {kind.__name__}")
    return found


def opened(make: Callable[[SandboxConfig], Backend], config: SandboxConfig) -> OwnBackend:
    """The user's backend, made. Raises InputError for what its constructor raises."""
    try:
        return OwnBackend(make(config), config.backend)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"sandbox.backend: {config.backend} cannot be opened: {described(error)}") from error
