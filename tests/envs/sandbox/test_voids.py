"""No way to unmake a failure: a sample of `bench/voids.py`, whose whole table takes some minutes for each backend."""

from bench.voids import ATTEMPTS, LIMITS, on_descriptors, on_signals, on_the_kernels_view, sweep

QUICK = [*on_signals(), *on_the_kernels_view(), *on_descriptors()]
SAMPLE = [*QUICK[::6], "a hundred small ones as dear as PID 1", "PID 1 dearer than everybody", "nothing is a FIFO"]


def test_no_attempt_looks_like_the_machines_fault(machine):
    found = machine.run_with_backend(lambda backend: sweep(backend, SAMPLE), limits=LIMITS)
    assert set(found) == set(SAMPLE) and set(found.values()) <= {"goes on", "ended"}


def test_there_are_enough_of_them():
    assert len(ATTEMPTS) >= 300 and len(set(ATTEMPTS.values())) == len(ATTEMPTS)
