"""A sample of `bench.fuzz`: damaged files are read, or refused in one line. All 10,000: python -m bench.fuzz."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_is_damaged_is_read_or_refused() -> None:
    """In a process of its own: its watch over files that are written cannot be taken off again, and slows all else."""
    words = [sys.executable, "-m", "bench.fuzz", "--num", "120", "--seed", "20"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and ", 0 findings, " in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
