"""Poisoned files, for every source: each is named with its reason, good rows stay, nothing is written outside.

The line of 2 GB is in `test_reading.py`, where its memory is measured.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from sandboxrl.data.reading import Rejected
from sandboxrl.data.sources import iter_source, load_source
from sandboxrl.launch.__main__ import main

STORY = "The fox crossed the river at dawn. It carried a red lamp, three coins and a map of the hills. " * 3
Row = dict[str, Any]

KINDS: dict[str, tuple[str, tuple[str, ...], str, Any]] = {
    # kind: (source, fields that must not be null, field of documents, row number -> a good row)
    "collection": (
        "general",
        ("context", "QA_list"),
        "",
        lambda i: {"context": f"{STORY}{i}", "QA_list": [["What did it cross?", f"the river {i}"]]},
    ),
    "published": (
        "general",
        ("problem_statement", "ground_truth"),
        "input_files",
        lambda i: {"id": f"p{i}", "problem_statement": f"What {i}?", "ground_truth": f"red lamp {i}"},
    ),
    "files": (
        "files",
        ("question", "answer"),
        "documents",
        lambda i: {"question": f"What {i}?", "answer": f"red lamp {i}", "documents": {"a.txt": STORY}},
    ),
    "math": ("math", ("prompt", "solution"), "", lambda i: {"prompt": f"What is 1 + {i}?", "solution": f"{1 + i}"}),
    "swe": (
        "swe",
        ("problem_statement", "expected_output_json"),
        "repository",
        lambda i: {
            "docker_image": "x:1",
            "problem_statement": f"[ISSUE]What {i}?[/ISSUE]",
            "expected_output_json": {"t": "PASSED"},
        },
    ),
}
OUTSIDE = ["../../etc/x", "/etc/x", "a/../../b", "..", "a//b", "a\0b", "x" * 300]


def poison(folder: Path, kind: str) -> dict[str, str]:
    """Writes the files; returns what must be said of `file:line`."""
    _, required, documents, row = KINDS[kind]
    said = {}

    def write(name: str, *lines: Row | bytes) -> None:
        text = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (folder / name).write_bytes(b"".join(line + b"\n" for line in text))

    write("a_good.jsonl", row(1), row(2))
    write("b_broken.jsonl", row(3), json.dumps(row(3)).encode()[:-9], row(4))
    said["b_broken.jsonl:2"] = "broken JSON"
    write(
        "c_latin.jsonl",
        row(5),
        json.dumps({**row(6), required[0]: "caf\0"}).encode().replace(b"\\u0000", b"\xe9"),
        row(7),
    )
    said["c_latin.jsonl:2"] = "not UTF-8"
    (folder / "d_utf16.jsonl").write_bytes(json.dumps(row(8)).encode("utf-16"))
    said["d_utf16.jsonl:1"] = "not UTF-8"
    write("e_null.jsonl", *({**row(9), name: None} for name in required), row(10))
    said |= {f"e_null.jsonl:{number + 1}": "" for number in range(len(required))}
    flat = [{name: v if isinstance(v, str) else json.dumps(v) for name, v in row(i).items()} for i in range(20, 40)]
    flat[3] = dict.fromkeys(flat[3])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), folder / "g_nulls.parquet")
    said["g_nulls.parquet:4"] = ""
    (folder / "f_cut.parquet").write_bytes((folder / "g_nulls.parquet").read_bytes()[:-100])
    said["f_cut.parquet"] = "cut off"
    if documents:
        write("i_many.jsonl", {**row(13), documents: {f"{i}.txt": "x" for i in range(10_000)}})
        said["i_many.jsonl:1"] = "10000 documents in one row, 1000 are allowed"
        write("j_paths.jsonl", *({**row(14 + i), documents: {name: "PWNED"}} for i, name in enumerate(OUTSIDE)))
        said |= {f"j_paths.jsonl:{i + 1}": "would leave" for i in range(len(OUTSIDE))}
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_every_poisoned_file_is_named_and_nothing_is_written_outside(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "deep" / "rows", tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    out.mkdir()
    said = poison(folder, kind)
    source, _, _, row = KINDS[kind]
    rejected: list[Rejected] = []
    tasks = list(iter_source({"source": source, "path": str(folder)}, rejected))
    assert len(tasks) == 7 + 19, "the good rows: 1 to 5, 7 and 10, and those of the whole Parquet file"
    found = {one.where.removeprefix(f"{folder}/"): one.reason for one in rejected}
    assert found.keys() == said.keys()
    assert all(reason in found[where] and "\n" not in found[where] for where, reason in said.items()), found

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["data", "build", source, f"path={folder}", "--out", str(out / "tasks.jsonl")]) == 0
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert {path for path in after if after[path] != before.get(path)} == {out, out / "tasks.jsonl"}
    assert load_source(str(out / "tasks.jsonl")) == tasks
    captured = capsys.readouterr()
    assert f"{len(said)} bad rows left out" in captured.out and f"left out  {folder}/b_broken.jsonl:2" in captured.err
    assert main(["data", "check", source, f"path={folder}"]) == 1
    assert main(["data", "build", source, f"path={folder}", "--strict", "--out", str(out / "strict.jsonl")]) == 2
    assert {path.name for path in out.iterdir()} == {"tasks.jsonl"}
