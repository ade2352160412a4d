"""Seven benchmarks and five sets of rows of one's own, in both modes, with a scripted policy and with a small model.

    python -m bench.sets --out FILE.json [--model DIR] [--gsm8k FILE] [--aqua FILE] [--limit N]

Each benchmark is one made row of its published schema (`tests/data/test_benchmarks.py`), so the numbers say that every
path from a row to a score works, not how good a model is. The sets of one's own are questions and answers (JSONL), a
choice (CSV), documents (JSONL), and two public files in their own schema: openai/grade-school-math
(`grade_school_math/data/test.jsonl`) and deepmind/AQuA (`test.json`), or made rows in these schemas.

| measure | is |
|---|---|
| `sets/POLICY/SET/MODE` | mean score of 100, `limit` 100 |
| `sets/POLICY/missing` | results that are missing: 0 |
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.report import measure, write_report
from tests.data.test_benchmarks import ORIGINAL, PUBLISHED
from tests.envs.grading.processes.test_ifbench import VERIFIER

TESTS = '[ -s answer.txt ] && echo "PASSED t.py::test_x" || echo "FAILED t.py::test_x - no"'
OWN = {
    "questions.jsonl": '{"question": "17 + 25?", "answer": "42"}\n{"question": "Which city?", "answer": "Oslo"}\n',
    "choices.csv": "question,A,B,C,answer\nWhich is a metal?,iron,oak,milk,A\nWhich is a tree?,iron,oak,milk,B\n",
    "documents.jsonl": '{"context": "Ada keeps 7 bees.", "question": "How many bees does Ada keep?", "answer": "7"}\n',
    "gsm8k.jsonl": '{"question": "2 boxes of 9 eggs: how many eggs?", "answer": "2*9 = <<2*9=18>>18\\n#### 18"}\n',
    "aqua.json": '{"question": "What is 3*7?", "options": ["A)20", "B)21"], "rationale": "3*7=21", "correct": "B"}\n',
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sets", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", type=Path, help="a model folder, evaluated beside scripted:gold")
    parser.add_argument("--gsm8k", type=Path, help="test.jsonl of openai/grade-school-math")
    parser.add_argument("--aqua", type=Path, help="test.json of deepmind/AQuA")
    parser.add_argument("--limit", type=int, default=2, help="tasks of each set")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        words = lay_out(folder, {"gsm8k.jsonl": args.gsm8k, "aqua.json": args.aqua})
        for policy in filter(None, ("scripted:gold", args.model and str(args.model))):
            out = folder / f"out-{len(found)}"
            line = [sys.executable, "-m", "sandboxrl.launch", "evaluate", policy, *words, "--out", str(out)]
            line += ["--limit", str(args.limit), "--repeats", "1", "--judge", "scripted:judge"]
            subprocess.run([*line, f"grader.ifbench={folder}"], check=True)
            name = policy if policy.startswith("scripted:") else "model"
            summary = json.loads((out / "summary.json").read_text())
            for one, modes in summary.items():
                for mode, numbers in modes.items():
                    found[f"sets/{name}/{Path(one).name}/{mode}"] = measure(100 * numbers["score"], limit=100)
            missing = sum(numbers["num_missing"] for modes in summary.values() for numbers in modes.values())
            found[f"sets/{name}/missing"] = measure(missing)
    write_report(args.out, found)


def lay_out(folder: Path, given: dict[str, Path | None]) -> list[str]:
    """Write the rows of all sets; returns the words of `sandboxrl evaluate` that name them."""
    (folder / "instructions_registry.py").write_text(VERIFIER)
    swe = {"image": "", "eval_script": TESTS, "FAIL_TO_PASS": ["t.py::test_x"], "PASS_TO_PASS": []}
    said = json.dumps({"instruction_id_list": ["count:keyword"], "kwargs": [{"keyword": "such", "n": 1}]})
    rows = PUBLISHED | {
        "swebench_verified": ORIGINAL["swebench_verified"] | swe,
        "ifbench": PUBLISHED["ifbench"] | {"ground_truth": said},
    }
    words = []
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        words += ["--data", f"{name}={folder}/{name}.jsonl"]
    for name, text in OWN.items():
        file = given.get(name)
        (folder / name).write_text(text if file is None else _first(file, 200))
    return [*words, "--benchmarks", ",".join([*rows, *(str(folder / name) for name in OWN)])]


def _first(file: Path, num: int) -> str:
    with file.open(encoding="utf-8") as lines:
        return "".join(itertools.islice(lines, num))


if __name__ == "__main__":
    main()
