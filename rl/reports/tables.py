"""The paper's tables (arXiv 2601.16206) from trajectories: as text, as CSV, and for a page.

    tables({"base": trajectories, "trained": trajectories}) -> [Table, ...]

A run is a label and its trajectories. A cell without trajectories is None and shows as a dash; a table that would hold
nothing but dashes is left out. Scores are per cent, as in the paper.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandboxrl.data.benchmarks import BENCHMARKS
from sandboxrl.envs.trajectory import Trajectory
from sandboxrl.rl.reports.analysis import CAPABILITIES, capability_use, habits, scores_by_task, summary
from sandboxrl.rl.reports.statistics import average, compare, interval

Runs = Mapping[str, Sequence[Trajectory]]
Cell = str | float | None


@dataclass(frozen=True)
class Table:
    name: str
    """File name of its CSV."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    digits: int = 1
    note: str = ""

    def shown(self, cell: Cell) -> str:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return "-"
        return cell if isinstance(cell, str) else f"{cell:.{self.digits}f}"

    def text(self) -> str:
        lines = [self.columns, *([self.shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        left = [all(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]
        drawn = [
            "  ".join(
                cell.ljust(width) if to_left else cell.rjust(width)
                for cell, width, to_left in zip(line, widths, left, strict=True)
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, drawn))
        return "\n".join([self.title, rule, drawn[0], rule, *drawn[1:], rule, *([self.note] if self.note else [])])

    def csv(self) -> str:
        """Full precision; an empty cell where there is nothing."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow(["" if self.shown(cell) == "-" else cell for cell in row])
        return out.getvalue()


def benchmark_of(trajectory: Trajectory) -> str:
    return str(trajectory.metadata.get("benchmark", trajectory.source))


def placement_of(trajectory: Trajectory) -> str:
    return str(trajectory.metadata.get("placement", "sandbox"))


def _names(runs: Runs) -> list[str]:
    """Benchmarks in the paper's order, then any other source by name."""
    found = {benchmark_of(one) for trajectories in runs.values() for one in trajectories}
    return [name for name in BENCHMARKS if name in found] + sorted(found - set(BENCHMARKS))


def _domain(name: str) -> str:
    return BENCHMARKS[name].domain if name in BENCHMARKS else name


def _of(trajectories: Iterable[Trajectory], name: str = "", mode: str = "", placement: str = "") -> list[Trajectory]:
    """Those of a benchmark, a mode and a placement (empty: any), without what the machine lost."""
    return [
        one
        for one in trajectories
        if one.score is not None
        and (not name or benchmark_of(one) == name)
        and (not mode or one.mode == mode)
        and (not placement or placement_of(one) == placement)
    ]


def _percent(trajectories: Sequence[Trajectory]) -> float | None:
    return 100 * average(scores_by_task(trajectories)) if trajectories else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def tables(runs: Runs) -> list[Table]:
    """Every table of the paper that these runs can fill, and the comparisons that go with them."""
    makers: tuple[Callable[[Runs], Table], ...] = (
        results, modes, against_first, placement, use_by_domain, use_by_run, tokens, speed, text_habits,
    )  # fmt: skip
    made = [maker(runs) for maker in makers]
    return [
        table for table in made if any(isinstance(cell, float) and cell == cell for row in table.rows for cell in row)
    ]


def results(runs: Runs) -> Table:
    """Tables 2, 9 and 10: a run a row, LLM and sandbox mode of every domain."""
    pairs = [(name, mode) for name in _names(runs) for mode in ("llm", "sandbox") if _known(name, mode)]
    columns = ("Run", *(f"{_domain(name)} {mode}" for name, mode in pairs))
    rows = [
        (label, *(_percent(_of(run, name, mode, _only(name))) for name, mode in pairs)) for label, run in runs.items()
    ]
    return Table("results", "Results (tables 2, 9, 10): score in %, LLM mode and sandbox mode", columns, tuple(rows))


def _known(name: str, mode: str) -> bool:
    return name not in BENCHMARKS or mode in BENCHMARKS[name].modes


def _only(name: str) -> str:
    """Where documents could be placed in two ways, the main tables show the sandbox."""
    return "sandbox" if name == "aa_lcr" else ""


def modes(runs: Runs) -> Table:
    """Table 2's differences, with what can be said about them."""
    rows: list[tuple[Cell, ...]] = []
    for label, run in runs.items():
        for name in _names(runs):
            sides = [_of(run, name, mode, _only(name)) for mode in ("llm", "sandbox")]
            found = compare(*(scores_by_task(side) for side in sides))
            if found:
                low, high = 100 * found.low, 100 * found.high
                between = f"[{low:+.1f}, {high:+.1f}]"
                rows.append(
                    (label, _domain(name), str(found.num_tasks), 100 * found.first, 100 * found.second,
                     100 * found.difference, between, f"{found.p_value:.3g}", found.test)
                )  # fmt: skip
    columns = ("Run", "Domain", "Tasks", "LLM", "Sandbox", "Difference", "95 %", "p", "Test")
    return Table("modes", "What the computer adds: sandbox mode minus LLM mode, paired by task", columns, tuple(rows))


def against_first(runs: Runs) -> Table:
    """Each run against the first one, paired by task."""
    labels = list(runs)
    rows: list[tuple[Cell, ...]] = []
    for label in labels[1:]:
        for name in _names(runs):
            for mode in ("llm", "sandbox"):
                sides = [_of(runs[one], name, mode, _only(name)) for one in (labels[0], label)]
                found = compare(*(scores_by_task(side) for side in sides))
                if found:
                    between = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
                    rows.append(
                        (label, _domain(name), mode, str(found.num_tasks), 100 * found.first, 100 * found.second,
                         100 * found.difference, between, f"{found.p_value:.3g}", found.test)
                    )  # fmt: skip
    first = labels[0] if labels else ""
    columns = ("Run", "Domain", "Mode", "Tasks", first, "This run", "Difference", "95 %", "p", "Test")
    return Table("comparison", f"Each run against {first}, paired by task", columns, tuple(rows))


def placement(runs: Runs) -> Table:
    """Table 3: long documents in the prompt or as files, both in sandbox mode."""
    rows: list[tuple[Cell, ...]] = []
    for label, run in runs.items():
        prompt, files = (_percent(_of(run, "aa_lcr", "sandbox", where)) for where in ("prompt", "sandbox"))
        if prompt is not None:
            rows.append((label, prompt, files))
    return Table(
        "placement", "Placement (table 3): AA-LCR in sandbox mode, score in %", ("Run", "Prompt", "Env."), tuple(rows)
    )


def use_by_domain(runs: Runs) -> Table:
    """Figure 2: capability use by domain."""
    rows: list[tuple[Cell, ...]] = []
    for label, run in runs.items():
        for name in _names(runs):
            kept = _of(run, name, "sandbox")
            if kept:
                rows.append((label, _domain(name), *_use(kept)))
    columns = ("Run", "Domain", "External %", "File %", "Computation %", "Avg. turns")
    return Table("capabilities_by_domain", "Capability use by domain (figure 2): % of turns", columns, tuple(rows))


def use_by_run(runs: Runs) -> Table:
    """Tables 4 and 11."""
    kept = {label: _of(run, mode="sandbox") for label, run in runs.items()}
    rows = tuple((label, *_use(run)) for label, run in kept.items() if run)
    columns = ("Run", "External %", "File %", "Computation %", "Avg. turns")
    return Table("capabilities", "Capability use (tables 4, 11): % of turns in sandbox mode", columns, rows)


def _use(trajectories: Sequence[Trajectory]) -> tuple[Cell, ...]:
    rates = capability_use(trajectories)
    turns = sum(len(one.turns) for one in trajectories) / len(trajectories)
    return (*(100 * rates[name] for name in CAPABILITIES), turns)


def tokens(runs: Runs) -> Table:
    """Table 5: thousand tokens a query, prompt and environment included, averaged over domains as in the paper."""
    rows: list[tuple[Cell, ...]] = []
    for label, run in runs.items():
        both: list[tuple[float, float]] = []
        for name in _names(runs):
            llm, sandbox = (_thousand(_of(run, name, mode, _only(name))) for mode in ("llm", "sandbox"))
            if llm is not None or sandbox is not None:
                rows.append((label, _domain(name), llm, sandbox, _ratio(sandbox, llm)))
            if llm is not None and sandbox is not None:
                both.append((llm, sandbox))
        if len(both) > 1:
            llm, sandbox = (sum(side) / len(both) for side in zip(*both, strict=True))
            rows.append((label, "Average", llm, sandbox, _ratio(sandbox, llm)))
    columns = ("Run", "Domain", "LLM", "Sandbox", "Ratio")
    return Table("tokens", "Tokens per query in thousands (table 5)", columns, tuple(rows), digits=2)


def _thousand(trajectories: Sequence[Trajectory]) -> float | None:
    """None also where the tokens are not known."""
    return (summary(trajectories)["tokens/total"] / 1000 or None) if trajectories else None


def speed(runs: Runs) -> Table:
    """Table 6: the environment's share of tokens and time, queries per minute."""
    rows: list[tuple[Cell, ...]] = []
    for label, run in runs.items():
        told: dict[str, dict[str, Any]] = {mode: summary(_of(run, mode=mode)) for mode in ("llm", "sandbox")}
        llm, sandbox = told["llm"], told["sandbox"]
        if sandbox["num_results"]:
            rows.append(
                (label, 100 * sandbox["environment/token_share"], 100 * sandbox["environment/time_share"],
                 llm["queries_per_minute"], sandbox["queries_per_minute"],
                 _ratio(sandbox["queries_per_minute"], llm["queries_per_minute"] or None))
            )  # fmt: skip
    columns = ("Run", "Env. tokens %", "Env. time %", "QPM LLM", "QPM sandbox", "QPM ratio")
    return Table("speed", "Speed (table 6)", columns, tuple(rows), digits=2)


def text_habits(runs: Runs) -> Table:
    """Table 12: verification phrases and structural marks per reply in LLM mode."""
    rows: list[tuple[Cell, ...]] = []
    for label, run in runs.items():
        kept = _of(run, mode="llm")
        if kept:
            found = habits(kept)
            rows.append((label, found["verification"], found["structure"]))
    columns = ("Run", "Verification", "Structure")
    return Table(
        "habits", "Verification and structure per reply in LLM mode (table 12)", columns, tuple(rows), digits=2
    )


def infrastructure(measured: Mapping[str, Any]) -> Table:
    """Table 7 from a file of `python -m bench.sandbox`: every measure of storage and memory in it, and what so many
    sandboxes at once take together."""
    rows: list[tuple[Cell, ...]] = []
    for name, row in sorted(measured.items()):
        if not isinstance(row, Mapping) or not _ROOM.search(name):
            continue
        ours, peer = _number(row.get("ours")), _number(row.get("peer"))
        rows.append((name, ours, peer))
        if (held := re.search(r"_(\d+)_([a-z]+)_each$", name, re.I)) and ours is not None:
            together = int(held[1]) * ours, None if peer is None else int(held[1]) * peer
            rows.append((name.removesuffix("each") + "together", *together))
    return Table("infrastructure", "Storage and memory (table 7)", ("Measure", "Ours", "Peer"), tuple(rows), digits=2)


_ROOM = re.compile(r"(?:^|[/_])(?:memory|storage|rss|disk|image|bytes|[kmgt]i?b)(?:$|[/_])", re.I)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def chart_rows(runs: Runs) -> list[tuple[str, str, str, float, float, float]]:
    """(domain, run, mode, score, low, high) in per cent, for the plots of the page."""
    rows = []
    for name in _names(runs):
        for label, run in runs.items():
            for mode in ("llm", "sandbox"):
                scores = scores_by_task(_of(run, name, mode, _only(name)))
                if scores:
                    low, high = interval(scores)
                    rows.append((_domain(name), label, mode, 100 * average(scores), 100 * low, 100 * high))
    return rows
