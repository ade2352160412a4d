"""The seven evaluation sets of the paper, and any other rows that are evaluated."""

from sandboxrl.data.benchmarks.rows import restored_latex
from sandboxrl.data.benchmarks.selection import Selection, load_benchmark, load_set
from sandboxrl.data.benchmarks.table import BENCHMARKS, PUBLISHED, Benchmark, benchmark

__all__ = [
    "BENCHMARKS",
    "PUBLISHED",
    "Benchmark",
    "Selection",
    "benchmark",
    "load_benchmark",
    "load_set",
    "restored_latex",
]
