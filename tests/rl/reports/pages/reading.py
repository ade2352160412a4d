"""Reads a page back: its JSON block, and what its chunks hold."""

import base64
import json
import re
import zlib
from typing import Any


def content(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def chunks(page: str, kind: str) -> list[dict[str, Any]]:
    packed = re.findall(rf'<script type="text/plain" id="{kind}\d+">([A-Za-z0-9+/=]*)</script>', page)
    return [json.loads(zlib.decompress(base64.b64decode(one))) for one in packed]


def texts(page: str) -> dict[int, dict[str, Any]]:
    """Row of the list -> what it says."""
    return {int(row): said for one in chunks(page, "text") for row, said in one["rows"].items()}


def tokens(page: str) -> dict[int, list[dict[str, Any]]]:
    """Row of the list -> its spans, each token as [id, text]."""
    return {
        int(row): [{**span, "tokens": [one["table"][i] for i in span["tokens"]]} for span in spans]
        for one in chunks(page, "tokens")
        for row, spans in one["rows"].items()
    }


def column(page: str, name: str) -> list[Any]:
    """A column of the list, its numbers replaced by what they stand for."""
    index = content(page)["index"]
    values = index["columns"][name]
    return [index["names"][name][value] for value in values] if name in index["names"] else values
