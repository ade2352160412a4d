"""The one way to plug in a part of your own: a name in a table, else `package.module:object`, else `file.py:object`.

    plugged("f1", REWARDS, "task.reward")                   the table's
    plugged("my_lab.rewards:f1", REWARDS, "task.reward")    of a package that is installed
    plugged("my_rewards.py:f1", REWARDS, "task.reward")     of a file; a recipe's are relative to the recipe

A file may import its neighbours: its folder comes first while it is imported, and last afterwards. `Code` carries the
files to another machine; `digest` tells whether they are still the ones that a run began with.
"""

import ast
import atexit
import fcntl
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import queue
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from sandboxrl.data.errors import InputError, described, nearest

T = TypeVar("T")
CALL_S = 60.0
"""What one call of a user's own function may take, where it has no limit of its own."""
MAX_CODE_BYTES = 4 << 20
"""Of the Python files beside a user's file, together: all of them travel."""
HOME = "sandboxrl-code-"
"""How the temporary folders begin in which code that was sent lies."""
_FORM = re.compile(r"(?P<where>[^:]+):(?P<name>[A-Za-z_]\w*)")
_moved: dict[str, Path] = {}
"""File as the recipe names it -> where it lies on this machine."""
_loaded: dict[Path, ModuleType] = {}


def plugged(value: str, table: Mapping[str, T], key: str, check: Callable[[Any], str] = lambda found: "") -> T:
    """The object that `value` names. `check` says what is wrong with the shape of one that is not the table's, empty
    for nothing. Raises InputError, which begins with `key`."""
    if value in table:
        return table[value]
    if not is_own(value):
        raise InputError(
            f"{key}: unknown {value!r}{nearest(value, table)} (or package.module:object, or file.py:object)"
        )
    module, name = _module(value, key)
    if not hasattr(module, name):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise InputError(f"{key}: {value}: there is no {name!r} in it{nearest(name, public)}")
    found: T = getattr(module, name)
    if wrong := check(found):
        raise InputError(f"{key}: {value}: {wrong}")
    return found


def is_own(value: str) -> bool:
    """Whether `value` has the form of a user's own part."""
    return _FORM.fullmatch(value) is not None


def anchored(value: str, folder: Path) -> str:
    """`value` with the path of a file made absolute: a relative one counts from `folder`."""
    where, _, name = value.partition(":")
    if not is_own(value) or not where.endswith(".py"):
        return value
    return f"{(folder / Path(where).expanduser()).resolve()}:{name}"


def digest(value: str, key: str = "") -> str:
    """Sixteen hex digits of the code behind `value`: its file and the neighbours that this imports, directly or not."""
    module, _ = _module(value, key)
    found = hashlib.sha256()
    for part in _sources(Path(str(module.__file__))):
        found.update(part.name.encode() + b"\0" + part.read_bytes())
    return found.hexdigest()[:16]


def here(value: str) -> str:
    """`value` with the path that the file has on this machine, for another process of it."""
    where, _, name = value.partition(":")
    return f"{_local(where)}:{name}" if is_own(value) and where.endswith(".py") else value


class OwnCodeFailed(Exception):
    """A user's own code raised, hung or gave back what it must not. One line says which part and how; the traceback is
    that of the cause."""


def called(key: str, function: Callable[..., T], *arguments: Any, timeout_s: float = CALL_S) -> T:
    """`function(*arguments)`, in a thread that is left behind when it takes too long. Raises OwnCodeFailed."""
    outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((True, function(*arguments)))
        except Exception as error:
            outcome.put((False, error))

    threading.Thread(target=work, daemon=True, name=key).start()
    try:
        done, found = outcome.get(timeout=timeout_s)
    except queue.Empty:
        raise OwnCodeFailed(f"{key} did not return within {timeout_s:g} s") from None
    if not done:
        raise OwnCodeFailed(f"{key} raised {described(found)}") from found
    result: T = found
    return result


def takes(found: Any, arguments: Sequence[str]) -> str:
    """What keeps `found` from being called with so many positional arguments; empty: nothing."""
    if not callable(found):
        return f"must be a function of ({', '.join(arguments)}), not {type(found).__name__}"
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError:
        return f"must take ({', '.join(arguments)}), not {inspect.signature(found)}"
    except ValueError:  # a function of C that tells no signature
        return ""
    return ""


@dataclass(frozen=True)
class Code:
    """A user's files, to be sent along: file as the recipe names it -> (its folder's Python files by relative path)."""

    folders: Mapping[str, Mapping[str, bytes]]

    @staticmethod
    def of(values: Iterable[str]) -> "Code":
        """What the files among `values` need. Raises InputError where their folder holds too much."""
        found = {}
        for value in values:
            where = value.partition(":")[0]
            if is_own(value) and where.endswith(".py"):
                found[where] = _python_files(_local(where).parent)
        return Code(found)

    def install(self) -> None:
        """Make the files known in this process, which may run on another machine."""
        for where, files in self.folders.items():
            if where in _moved or Path(where).is_file():
                continue
            folder = _home() / hashlib.sha256(where.encode()).hexdigest()[:12]
            for name, text in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(text)
            _moved[where] = folder / Path(where).name


@functools.cache
def _home() -> Path:
    """A folder for what is sent to this process. It goes when the process ends; what killed ones have left goes now."""
    below = Path(tempfile.gettempdir())
    for left in below.glob(f"{HOME}*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{HOME}"))
    fcntl.flock(os.open(made, os.O_RDONLY), fcntl.LOCK_EX)  # held as long as this process lives
    home = made.rename(below / made.name[1:])  # now others may look whether anybody holds it
    atexit.register(_leave, home, os.getpid())
    return home


def _leave(home: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not a fork of it
        shutil.rmtree(home, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether a process of this user made it, and lives no more."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_uid == os.geteuid()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _module(value: str, key: str) -> tuple[ModuleType, str]:
    found = _FORM.fullmatch(value)
    assert found, value
    where, name = found["where"], found["name"]
    if where.endswith(".py"):
        return _from_file(where, key), name
    try:
        return importlib.import_module(where), name
    except Exception as error:
        raise InputError(f"{key}: {value}: {where} cannot be imported: {described(error)}") from error


def _from_file(where: str, key: str) -> ModuleType:
    file = _local(where)
    if file in _loaded:
        return _loaded[file]
    if not file.is_file():
        siblings = [sibling.name for sibling in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise InputError(f"{key}: no such file: {file}{nearest(file.name, siblings) if siblings else ''}")
    name = f"sandboxrl_own_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as an import does: its dataclasses look for it
    try:
        with _first_on_path(str(file.parent)):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{key}: {file} cannot be imported: {described(error)}") from error
    _loaded[file] = module
    return module


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    """A user's folder comes first while their file is imported, so that it finds its neighbours, and last afterwards.
    Modules of the same names that others have imported step aside for that time."""
    entries = list(Path(folder).iterdir())
    names = {entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    aside = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in names and not str(getattr(module, "__file__", "")).startswith(folder + os.sep)
    }
    for name in aside:
        del sys.modules[name]
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.modules.update(aside)
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _local(where: str) -> Path:
    return _moved.get(where) or Path(where).expanduser().resolve()


def _sources(file: Path) -> list[Path]:
    """`file` and the files of its folder that it imports, directly or not, in a fixed order."""
    found, waiting = {file}, [file]
    while waiting:
        for names in _imported_names(waiting.pop()):
            stems = [file.parent.joinpath(*names[:end]) for end in range(1, len(names) + 1)]
            for part in [path for stem in stems for path in (stem.with_suffix(".py"), stem / "__init__.py")]:
                if part not in found and part.is_file():
                    found.add(part)
                    waiting.append(part)
    return sorted(found)


def _imported_names(file: Path) -> Iterator[list[str]]:
    """Of every import statement in `file`, the dotted names it may mean."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            yield from ([*module, alias.name] for alias in node.names)


def _python_files(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    total = 0
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")) and name != "site-packages")
        for name in sorted(name for name in names if name.endswith(".py")):
            file = Path(here, name)
            found[str(file.relative_to(folder))] = file.read_bytes()
            total += len(found[str(file.relative_to(folder))])
            if total > MAX_CODE_BYTES:
                raise InputError(
                    f"{folder} holds more than {MAX_CODE_BYTES >> 20} MB of Python files, which would all be sent to "
                    f"every worker: put your code into a folder of its own"
                )
    return found
