"""A sample of `bench.fuzz`: damaged files are read, or refused in one line. All 10,000: python -m bench.fuzz."""

import pytest

from bench.fuzz import KINDS, cases


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_is_read_or_refused(kind: str) -> None:
    assert [found for found in cases(range(34), [kind], seed=20) if found[2]] == []
