"""The evaluation sets as one table: where the rows are, how they become Tasks, how many are taken and how often."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sandboxrl.data.benchmarks.rows import (
    aa_lcr,
    aime25,
    chembench,
    ifbench,
    medxpertqa,
    swebench,
    ugphysics,
)
from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.reading import Row
from sandboxrl.data.task import Task

PUBLISHED = "daixuancheng/llm-in-sandbox-bench"


@dataclass(frozen=True)
class Benchmark:
    """One row of the table."""

    name: str
    domain: str
    """Column of the paper's tables."""
    config: str = ""
    """Config of the published set; empty: it is not in it."""
    original: tuple[str, tuple[str, ...], str] = ("", (), "")
    """The original release: data set, configs, split."""
    read: Callable[[str, Row, Path | None], Task] | None = None
    """`read(where, row, documents)` -> Task. Raises InputError for a bad row. None: the set is a source of tasks."""
    num_tasks: int = 0
    repeats: int = 1
    strata: int = 0
    """Rows of each value of `metadata["stratum"]`; 0: rows of the whole set."""
    modes: tuple[str, ...] = ("llm", "sandbox")
    max_tokens: int = 65_536
    """Of a trajectory and of a turn (the paper's appendix B)."""


PHYSICS_SUBJECTS = (
    "AtomicPhysics", "ClassicalElectromagnetism", "ClassicalMechanics", "Electrodynamics", "GeometricalOptics",
    "QuantumMechanics", "Relativity", "SemiconductorPhysics", "Solid-StatePhysics", "StatisticalMechanics",
    "TheoreticalMechanics", "Thermodynamics", "WaveOptics",
)  # fmt: skip
CHEMISTRY_TASKS = (
    "Caption2mol", "Mol2caption", "Name_Conversion", "Product_Prediction", "Property_Prediction", "Retrosynthesis",
    "Solvent_Prediction", "Temperature_Prediction", "Yield_Prediction",
)  # fmt: skip

BENCHMARKS = {
    one.name: one
    for one in (
        Benchmark("aime25", "Math", "math", ("math-ai/aime25", (), "test"), aime25, 30, repeats=16),
        Benchmark(
            "ugphysics", "Physics", "physics", ("UGPhysics/ugphysics", PHYSICS_SUBJECTS, "en"), ugphysics, 650,
            strata=50,
        ),
        Benchmark(
            "chembench", "Chem.", "chem", ("AI4Chem/ChemBench4K", CHEMISTRY_TASKS, "test"), chembench, 450, strata=50,
        ),
        Benchmark("medxpertqa", "Biomed.", "biomed", ("TsinghuaC3I/MedXpertQA", ("Text",), "test"), medxpertqa, 500),
        Benchmark(
            "aa_lcr", "Long-Cont.", "long_context", ("ArtificialAnalysis/AA-LCR", (), "test"), aa_lcr, 100,
            repeats=4, max_tokens=131_072,
        ),
        Benchmark("ifbench", "Instruct.", "instruct_follow", ("allenai/IFBench_test", (), "train"), ifbench, 300),
        Benchmark(
            "swebench_verified", "SWE", "", ("princeton-nlp/SWE-bench_Verified", (), "test"), swebench, 500,
            modes=("sandbox",),
        ),
    )
}  # fmt: skip


def benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}{nearest(name, BENCHMARKS)}")
    return BENCHMARKS[name]
