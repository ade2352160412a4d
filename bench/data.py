"""How fast general tasks are built: `python -m bench.data [--quick] --out FILE.json`.

Rows in the form of the raw collection are generated (four of five are one paragraph that gets distractors, the fifth is
a sectioned text), then built and written by `sandboxrl data build` in a process of its own. Measured: rows per second,
peak memory of that process, and whether ten times the rows take ten times as long. No peer publishes a builder; the
limit is reading the rows and writing as many bytes of JSON as the tasks have, in the same way, without building.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.report import measure, write_report
from sandboxrl.launch.__main__ import main

ROWS = 100_000
QUICK_ROWS = 20_000


def write_rows(path: Path, num_rows: int, seed: int = 0) -> None:
    """Rows of the collection's form: 120 to 260 words of context, three questions in their order."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghiklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(20_000)]
    with path.open("w", encoding="utf-8") as handle:
        for i in range(num_rows):
            body = [" ".join(rng.choices(words, k=12)).capitalize() + "." for _ in range(rng.randint(10, 22))]
            if i % 5 == 0:
                third = len(body) // 3 + 1
                parts = zip(("Introduction", "Methods", "Results"), range(0, len(body), third), strict=False)
                text = "\n".join(f"# {title}\n" + " ".join(body[a : a + third]) for title, a in parts)
            else:
                text = " ".join(body)
            said = [sentence.split() for sentence in rng.sample(body, 3)]
            pairs = [{"Q": f"What follows {' '.join(s[:4])} in the text?", "A": " ".join(s[4:7])} for s in said]
            row = {"context": text, "QA_list": pairs, "QA_type": "free-form", "rc_name": f"set{i % 4}"}
            handle.write(json.dumps(row) + "\n")


def build(rows: Path, out: Path) -> dict[str, float]:
    """Seconds and peak bytes of the builder's process."""
    command = [sys.executable, "-m", "bench.data", "--build", str(rows), "--out", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {key: float(value) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def copy_json(rows: Path, built: Path, out: Path) -> float:
    """Seconds to parse the rows, and to parse and write the built tasks: the work around building."""
    started = time.perf_counter()
    with rows.open("rb") as source:
        for line in source:
            json.loads(line)
    tasks: list[Any] = []
    spent = time.perf_counter() - started
    with built.open("rb") as source, out.open("w", encoding="utf-8") as sink:
        for line in source:
            tasks.append(json.loads(line))
            if len(tasks) == 1000:
                started = time.perf_counter()
                sink.writelines(json.dumps(task, ensure_ascii=False, sort_keys=True) + "\n" for task in tasks)
                spent += time.perf_counter() - started
                tasks.clear()
    return spent


def measures(num_rows: int, folder: Path) -> dict[str, Any]:
    rows, tenth, out = folder / "rows.jsonl", folder / "tenth.jsonl", folder / "tasks.jsonl"
    write_rows(rows, num_rows)
    write_rows(tenth, num_rows // 10)
    small = build(tenth, out)
    full = build(rows, out)
    limit = num_rows / copy_json(rows, out, folder / "copy.jsonl")
    rate = num_rows / full["build_s"]
    return {
        "num_rows": measure(num_rows),
        "build_rows_per_s": measure(rate, at_least=2000, goal="at least 2000"),
        "build_rows_per_cpu_s": measure(num_rows / full["cpu_s"], goal="the same on a machine that is not shared"),
        "json_alone_rows_per_s": measure(limit, goal="reading and writing without building: the limit"),
        "build_peak_memory_mib": measure(full["peak_bytes"] / 2**20, at_most=1024, goal="at most 1024"),
        "build_time_of_10x_rows": measure(
            full["cpu_s"] / small["cpu_s"], limit=10, at_most=1.2, goal="ratio at most 1.2"
        ),
    }


def run() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.data", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows instead of {ROWS:,}")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        return _build_here(args.build, args.out)
    num_rows = QUICK_ROWS if args.quick else ROWS
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        found = measures(num_rows, Path(folder))
    write_report(args.out, found)
    return 0 if all(one["holds"] is not False for one in found.values()) else 1


def _build_here(rows: Path, out: Path) -> int:
    started, cpu = time.perf_counter(), time.process_time()
    code = main(["data", "build", "general", f"path={rows}", "format=collection", "--out", str(out)])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = {"build_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    print(json.dumps(spent | {"peak_bytes": usage.ru_maxrss * 1024}))
    return code


if __name__ == "__main__":
    sys.exit(run())
