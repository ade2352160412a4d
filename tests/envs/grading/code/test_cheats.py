"""Ways to score on a hidden-test task without solving it: each earns nothing where tests run in a fresh sandbox."""

import pytest

from bench.cheats import HONEST, LIMITS, cheats, played
from sandboxrl.envs.sandbox.pool import Pool

CHEATS = cheats()


class Borrowed:
    """A backend that others use too: a pool may not close it."""

    def __init__(self, backend):
        self.start, self.name = backend.start, backend.name

    async def close(self):
        pass


def scores(machine, way, *policies, limits=LIMITS):
    async def body(backend):
        pool = Pool(Borrowed(backend), warm=0)
        found = [await played(pool, way, commands) for commands in policies]
        await pool.close()
        return found

    return machine.run_with_backend(body, kept=True, limits=limits)


def test_an_honest_solution_scores_1_and_silence_0(machine):
    assert scores(machine, "fresh", *(commands for commands, _ in HONEST.values())) == [0.0, 1.0]


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_scores_0(machine, name):
    if machine.drops:
        pytest.skip("as for root: what tests see is the same")
    assert scores(machine, "fresh", CHEATS[name]) == [0.0]


def test_cheats_work_where_nothing_stands_against_them(machine):
    if machine.drops:
        pytest.skip("as for root: what tests see is the same")
    names = ["conftest.py", "function export", "poisoned bytecode"]
    names += ["hard links"] * (machine.backend != "docker")  # root in a container writes over a read-only file
    assert scores(machine, "bare", *(CHEATS[name] for name in names)) == [1.0] * len(names)
