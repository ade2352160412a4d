"""Broken files: what is wrong is named with its place, what is right is kept, and memory stays bounded."""

import csv
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrl.data.errors import InputError
from sandboxrl.data.reading import Rejected, read_rows

ROOT = Path(__file__).resolve().parents[2]


def read(path: Path, **options: int) -> tuple[list[object], dict[str, str]]:
    rejected: list[Rejected] = []
    rows = [(where.rpartition(":")[2], row) for where, row in read_rows(path, rejected, **options)]
    assert all(one.where.startswith(str(path)) and "\n" not in str(one) for one in rejected)
    return rows, {one.where.rpartition(":")[2] if one.where != str(path) else "": one.reason for one in rejected}


def test_a_jsonl_file_with_every_kind_of_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": ',
        b"",
        b'{"a": "\xff\xfe"}',
        '{"a": "kept \u0085 and \u2028 too"}'.encode(),
        b"[1, 2]",
        b"null",
        b'{"a": "\\ud800"}',
        b'{"a": "\\ud83d\\ude00"}',
        b'{"a": ' + b"[" * 100_000,
        b'{"a": "' + b"x" * 5000 + b'"}',
        b'{"a": 2}\r',
        b'{"a": "cut off here',
    ]
    path.write_bytes(b"\n".join(lines))
    rows, bad = read(path, max_row_bytes=4000)
    assert rows == [
        ("1", {"a": 1}),
        ("5", {"a": "kept \u0085 and \u2028 too"}),
        ("9", {"a": "😀"}),
        ("12", {"a": 2}),
    ]
    assert list(bad) == ["2", "4", "6", "7", "8", "10", "11", "13"]
    assert "broken JSON" in bad["2"] and "not UTF-8 (byte 7" in bad["4"] and "not an object but list" in bad["6"]
    assert "surrogate" in bad["8"] and "longer than 4000 bytes" in bad["10"] and "longer than 4000 bytes" in bad["11"]


def test_deep_nesting_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b'}\n{"a": 1}\n')
    rows, bad = read(path)
    assert rows == [("2", {"a": 1})] and "nested too deeply" in bad["1"]


def test_a_line_of_two_gigabytes_does_not_fill_the_memory(tmp_path: Path) -> None:
    """Read in a process whose address space could not hold the line."""
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as handle:
        handle.write(b'{"a": 1}\n')
        handle.seek(2 << 30, 1)  # a hole in the file: 2 GiB of zero bytes that take no room on the disk
        handle.write(b'\n{"a": 2}\n')
    code = (
        "import resource, sys; from pathlib import Path; from sandboxrl.data.reading import read_rows\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({1 << 30}, {1 << 30}))\n"
        "bad = []; print([row for _, row in read_rows(Path(sys.argv[1]), bad)]); print(*bad)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"[{{'a': 1}}, {{'a': 2}}]\n{path}:2: the line is longer than {64 << 20} bytes\n"


def test_a_csv_file_with_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'\xef\xbb\xbfq,a\r\n1,"two\nlines"\r\n2,"never closed\n3,c\n4,\xff\n5,"say ""hi"", you"\n6,7,8\n,\n'
        b"7," + b"x" * 5000 + b'\n8,"ba"d\n9,last'
    )
    rows, bad = read(path, max_row_bytes=4000)
    assert rows == [
        ("2", {"q": "1", "a": "two\nlines"}),
        ("5", {"q": "3", "a": "c"}),
        ("7", {"q": "5", "a": 'say "hi", you'}),
        ("12", {"q": "9", "a": "last"}),
    ]
    assert list(bad) == ["4", "6", "8", "10", "11"]
    assert "3 cells under a header of 2" in bad["8"] and "longer than" in bad["10"]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=12))
def test_whatever_csv_writes_is_read_back(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerows([("q", "a"), *rows])
        rejected: list[Rejected] = []
        assert [tuple(row.values()) for _, row in read_rows(path, rejected)] == rows
        assert not rejected


def test_a_tsv_has_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('q\ta\n"one\t"two"\n')
    assert read(path) == ([("2", {"q": '"one', "a": '"two"'})], {})


def parquet(path: Path, num: int = 1000) -> None:
    table = pyarrow.table({"n": list(range(num)), "text": [f"row {i} " + "x" * 200 for i in range(num)]})
    pyarrow.parquet.write_table(table, path, row_group_size=100, compression="none")


def test_a_parquet_file_that_is_cut_off_loses_only_itself(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet")
    parquet(tmp_path / "b.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    rejected: list[Rejected] = []
    rows = list(read_rows(tmp_path, rejected))
    assert [row["n"] for _, row in rows] == list(range(1000)) and rows[7][0] == f"{tmp_path / 'b.parquet'}:8"
    assert len(rejected) == 1 and "cut off" in rejected[0].reason and rejected[0].where.endswith("a.parquet")


def test_a_parquet_file_with_a_damaged_page_loses_one_row_group(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet(path)
    metadata = pyarrow.parquet.ParquetFile(path).metadata
    content = bytearray(path.read_bytes())
    start = metadata.row_group(4).column(1).dictionary_page_offset or metadata.row_group(4).column(1).data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    rows, bad = read(path)
    numbers = [row["n"] for _, row in rows]
    assert numbers == [n for n in range(1000) if not 400 <= n < 500]
    assert list(bad) == ["401-500"]


def test_parquet_text_that_is_not_utf8_loses_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    raw = pyarrow.array([b"good", b"\xff\xfe", b"fine"]).cast(pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path)
    rows, bad = read(path)
    assert [row for _, row in rows] == [{"text": "good"}, {"text": "fine"}] and "not UTF-8" in bad["2"]


def test_a_json_file_is_a_list_or_an_object_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"x": {"q": 1}, "y": {"id": "own", "q": 2}, "z": 3}))
    rows, bad = read(path)
    assert [row for _, row in rows] == [{"id": "x", "q": 1}, {"id": "own", "q": 2}] and "not an object" in bad["3"]
    path.write_text("[{]")
    assert read(path)[0] == [] and "broken JSON" in read(path)[1][""]


def test_what_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path, message in (
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path / "notes.txt", "not a kind of file that holds rows"),
        (tmp_path, "no file of rows"),
    ):
        with pytest.raises(InputError, match=message):
            list(read_rows(path, []))


def test_reading_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as handle:
        for i in range(40_000):
            handle.write(json.dumps({"n": i, "text": "x" * 2000}) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in read_rows(path, [])) == 40_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB; the file has 80 MB
