"""YAML as people mean it: what is written where a text belongs stays that text.

`on`, `no` and `off` are words, `010` is a text (neither 8 nor 10), `1e3` is a number; a key twice is an error. `read`
returns the values and, of the same shape, the texts as written, so that whoever knows the type of a key can take its
text: `name: 1.10` is the name "1.10".
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from sandboxrl.data.errors import InputError, one_line

MAX_NODES = 200_000
"""Of a document with its anchors written out: a few lines of anchors can stand for billions."""
MAX_DEPTH = 100
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False, ".inf": math.inf, "-.inf": -math.inf, ".nan": math.nan,
    "inf": math.inf, "-inf": -math.inf, "nan": math.nan,
}  # fmt: skip


def read_file(path: Path) -> tuple[Any, Any]:
    """Of a file; see `read`. Raises OSError too."""
    if path.exists() and not path.is_file():  # to open a pipe is to wait for whoever writes into it
        raise InputError(f"{path} is not a file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file: {error}") from None
    return read(text, str(path))


def read(text: str, where: str) -> tuple[Any, Any]:
    """(values, texts) of one YAML document; both are None for an empty one. Raises InputError, which begins with
    `where`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return (None, None) if node is None else _Reader(where).both(node, 0)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: not a YAML file: {one_line(error)}") from None


def read_word(text: str, where: str) -> tuple[Any, Any]:
    """Of the right side of `key=value` as a person types it: what YAML cannot read is a text, unless it begins like a
    mapping, a list or a quotation. Nothing at all is None, and the text ""."""
    if not text.strip():
        return None, ""
    try:
        value, written = read(text, where)
    except InputError:
        if text.lstrip()[0] in "{[\"'":
            raise
        return text, text
    return (value, written) if isinstance(value, list | dict) or text.lstrip()[0] in "\"'" else (value, text.strip())


def value_of(text: str) -> Any:
    """The value that a plain scalar stands for."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INT.fullmatch(text) and len(text) < 400:
        return int(text.replace("_", ""))
    return float(text.replace("_", "")) if _FLOAT.fullmatch(text) else text


class _Reader:
    def __init__(self, where: str) -> None:
        self._where, self._num_nodes = where, 0

    def both(self, node: yaml.Node, depth: int) -> tuple[Any, Any]:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or depth > MAX_DEPTH:
            raise InputError(f"{self._where}: too large: more than {MAX_NODES} values, or {MAX_DEPTH} levels")
        if isinstance(node, yaml.ScalarNode):
            quoted = node.style is not None or node.tag == "!!str"
            return (node.value if quoted else value_of(node.value)), node.value
        if isinstance(node, yaml.SequenceNode):
            pairs = [self.both(below, depth + 1) for below in node.value]
            return [value for value, _ in pairs], [text for _, text in pairs]
        values: dict[str, Any] = {}
        texts: dict[str, Any] = {}
        merged: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        for key, below in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{self._line(key)}: a key must be a word")
            value, text = self.both(below, depth + 1)
            if key.value == "<<" and key.style is None:
                for one, its in zip(*([value], [text]) if isinstance(value, dict) else (value, text), strict=True):
                    if not isinstance(one, dict):
                        raise InputError(f"{self._line(key)}: << takes a mapping")
                    merged[0].update({k: v for k, v in one.items() if k not in merged[0]})
                    merged[1].update({k: v for k, v in its.items() if k not in merged[1]})
                continue
            if key.value in values:
                raise InputError(f"{self._line(key)}: the key {key.value!r} stands here twice")
            values[key.value], texts[key.value] = value, text
        return merged[0] | values, merged[1] | texts

    def _line(self, node: yaml.Node) -> str:
        return f"{self._where}: line {node.start_mark.line + 1}"
