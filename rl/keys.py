"""What YAML and `a.b=c` words mean for a dataclass of settings: layers of typed values, to be merged by OmegaConf.

An unknown key or a value of a wrong type is an InputError that names the key and the nearest valid one. The fields'
own texts, a string under each, are what `explain --keys` prints.
"""

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_origin

from omegaconf import OmegaConf

from sandboxrl.data import plain_yaml
from sandboxrl.data.errors import InputError, nearest, one_line
from sandboxrl.data.plugin import anchored

LARGEST = 1 << 53
"""No number of a recipe is larger: beyond it floats are not exact."""


def merged(base: Any, *layers: Any) -> Any:
    try:
        return OmegaConf.merge(OmegaConf.structured(base), *layers)
    except TypeError as error:  # a list where a mapping belongs, or the other way round
        raise InputError(one_line(error)) from None


def read_layers(path: Path, section: type, seen: tuple[Path, ...] = ()) -> list[Any]:
    """The file and what it extends, base first."""
    if not path.is_file():
        siblings = [str(p) for p in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such recipe{nearest(str(path), siblings) if siblings else ''}")
    if path.resolve() in seen:
        raise InputError(f"{path}: extends itself")
    values, texts = plain_yaml.read_file(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a mapping of keys to values")
    values.pop("extends", None)
    base = texts.pop("extends", "")
    if not isinstance(base, str):
        raise InputError(f"{path}: extends: one file, not {base!r}")
    below = read_layers(path.parent / base, section, (*seen, path.resolve())) if base else []
    return [*below, anchored_layer(_typed(section, values, texts, f"{path}: "), path.parent)]


def anchored_layer(layer: Any, folder: Path) -> Any:
    """The layer with the files of a user's own code (`my_tools.py:search`) made absolute."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(below) for key, below in value.items()}
        if isinstance(value, list):
            return [walk(below) for below in value]
        return anchored(value, folder) if isinstance(value, str) else value

    return OmegaConf.create(walk(layer))


def read_overrides(words: Sequence[str], section: type) -> dict[str, Any]:
    values: dict[str, Any] = {}
    texts: dict[str, Any] = {}
    for word in words:
        if not (found := re.fullmatch(r"([A-Za-z_][\w-]*(?:\.[\w-]+)*)=(.*)", word, re.DOTALL)):
            raise InputError(f"{word!r}: an override is key=value, for example steps=5 or loss.clip_low=0.1")
        value, text = plain_yaml.read_word(found[2], found[1])
        _put(values, found[1].split("."), value)
        _put(texts, found[1].split("."), text)
    return _typed(section, values, texts, "")


def _put(into: dict[str, Any], keys: list[str], value: Any) -> None:
    *above, last = keys
    for key in above:
        if not isinstance(into.get(key), dict):
            into[key] = {}
        into = into[key]
    into[last] = value


def _typed(section: type, values: Mapping[str, Any], texts: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a layer: every key must be a field of `section`, and what belongs into a text is the text as it was
    written. OmegaConf checks the rest. Raises InputError."""
    known = {f.name: f.type for f in fields(section)}
    typed = {}
    for name, value in values.items():
        if name not in known:
            raise InputError(
                f"{where.rpartition(': ')[0] or 'override'}: unknown key "
                f"{where.rpartition(': ')[2] + name!r}{nearest(name, known)}"
            )
        below, text = known[name], texts[name]
        if isinstance(below, type) and is_dataclass(below):
            if not isinstance(value, dict):
                raise InputError(f"{where}{name}: must hold keys such as {fields(below)[0].name}, not {value!r}")
            typed[name] = _typed(below, value, text, f"{where}{name}.")
        else:
            typed[name] = _fitting(below, value, text, f"{where}{name}")
    return typed


def _fitting(kind: Any, value: Any, text: Any, where: str) -> Any:
    """`value` as a key of the type `kind` takes it. Raises InputError for a number that is none."""
    if isinstance(text, str) and "\0" in text:
        raise InputError(f"{where}: holds a null byte")
    if text == "???":
        raise InputError(f"{where}: ??? stands for a value that is still to be given")
    if kind is str or get_origin(kind) is Literal:
        return text if isinstance(text, str) and (value is not None or text == "") else value
    if kind in (dict[str, str], list[str]):
        return text if type(text) is get_origin(kind) else value
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e3
    if kind in (int, float) and (isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))):
        raise InputError(f"{where}: must be a number, not {text}")
    if kind in (int, float) and isinstance(value, int | float) and abs(value) > LARGEST:
        raise InputError(f"{where}: {text} is beyond all sizes")
    return value


def is_carried_out(key: str, section: type) -> bool:
    """Whether the dotted `key` says how a run is carried out; else it is part of the experiment."""
    name, _, inner = key.partition(".")
    if name in getattr(section, "CARRIED_OUT", ()):
        return True
    below = {f.name: f.type for f in fields(section)}.get(name)
    return bool(inner) and isinstance(below, type) and is_dataclass(below) and is_carried_out(inner, below)


def knobs(section: type, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Every key of a recipe with its default and the text under its declaration: what `explain --keys` prints."""
    found: dict[str, tuple[Any, str]] = {}
    texts = _field_texts(section)
    for f in fields(section):
        kind = f.default_factory if f.default is MISSING and f.default_factory is not MISSING else None
        if isinstance(kind, type) and is_dataclass(kind):
            found |= knobs(kind, f"{prefix}{f.name}.")
        else:
            found[prefix + f.name] = (f.default, texts.get(f.name, ""))
    return found


def _field_texts(section: type) -> dict[str, str]:
    """Field name -> the string literal under it in the source of the dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for above, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name) and isinstance(below, ast.Expr):
            texts[above.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return texts
