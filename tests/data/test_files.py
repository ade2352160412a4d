"""Files that are whole or not there, and folders that one process holds."""

import subprocess
import sys
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import held, read_jsonl, write_jsonl, write_whole, written_whole


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "old")
    with pytest.raises(RuntimeError), written_whole(file) as handle:
        handle.write(b"new, but cut o")
        raise RuntimeError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    write_whole(file, "new é".encode())
    assert file.read_text() == "new é"


def test_half_a_last_line_is_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_jsonl(file) == []
    write_jsonl(file, [{"a": 1}, {"a": "é"}])
    with file.open("ab") as handle:
        handle.write('{"a": "é'.encode()[:-1])  # cut inside a character
    assert read_jsonl(file) == [{"a": 1}, {"a": "é"}]


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from sandboxrl.data.files import held\n"
        f"with held(pathlib.Path({str(tmp_path)!r}), 'in use'): print('held')"
    )
    with held(tmp_path, "in use"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1 and "InputError: in use" in done.stderr
        with pytest.raises(InputError, match="in use"), held(tmp_path, "in use"):
            pass
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "held\n"
