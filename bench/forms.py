"""Our verdicts on the table of answer forms beside those of other graders, each disagreement with its reason.

    python -m bench.forms --out FILE.json [--opencompass DIR] [--medxpertqa DIR] [--lm-eval DIR] [--ugphysics DIR]

The table is `tests/envs/grading/answers/forms.yaml`: each form with the verdict of a careful person, which is ours (its
test says so). DIR is a checkout of the official code, or an unpacked package; what is not named is not run.

| measure | official | kind |
|---|---|---|
| `forms/math_verify` | math-verify, gold and form in boxes, as llm-in-sandbox asks it | `math` |
| `forms/opencompass` | open-compass/opencompass: ChemBench's `first_capital_postprocess` | `choice` |
| `forms/medxpertqa` | TsinghuaC3I/MedXpertQA: `answer_cleansing`, zero shot | `choice` |
| `forms/lm_eval_gsm8k` | lm_eval: the filters of gsm8k.yaml, either of them, and `exact_match` | `number` |
| `forms/lm_eval_mmlu` | lm_eval: the same of mmlu flan_cot_zeroshot | `choice` |
| `forms/ugphysics` | YangLabHKUST/UGPhysics: the rules, not the judge (antlr4-python3-runtime 4.11) | `math` |

`ours` is how many verdicts are the same, `limit` how many there are. `differs.yaml` beside the table holds the reasons:
what no reason there covers is counted in `forms/NAME_unexplained` and printed.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import re
import string
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from bench.report import measure, write_report
from sandboxrl.envs.grading.answers.mathematics import verified, wrapped

TABLE = Path(__file__).resolve().parents[1] / "tests" / "envs" / "grading" / "answers"
Verdict = Callable[[dict[str, Any], list[str]], list[bool]]
"""`(gold of the table, its forms)` -> whether the other grader takes each."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.forms", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    told = "its checkout, or an unpacked package"
    parser.add_argument("--opencompass", type=Path, metavar="DIR", help=told)
    parser.add_argument("--medxpertqa", type=Path, metavar="DIR", help=told)
    parser.add_argument("--lm-eval", type=Path, metavar="DIR", help=told)
    parser.add_argument("--ugphysics", type=Path, metavar="DIR", help=told)
    parser.add_argument("--only", help="one measure of these")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth form, for a slow grader")
    args = parser.parse_args()
    graders: dict[str, tuple[str, Verdict]] = {"math_verify": ("math", each(math_verify))}
    if args.opencompass:
        graders["opencompass"] = ("choice", opencompass(args.opencompass))
    if args.medxpertqa:
        graders["medxpertqa"] = ("choice", medxpertqa(args.medxpertqa))
    if args.lm_eval:
        graders["lm_eval_gsm8k"] = ("number", lm_eval(args.lm_eval, "gsm8k/gsm8k.yaml", number_target))
        mmlu = "mmlu/flan_cot_zeroshot/_mmlu_flan_cot_zeroshot_template_yaml"
        graders["lm_eval_mmlu"] = ("choice", lm_eval(args.lm_eval, mmlu, letter_target))
    if args.ugphysics:
        graders["ugphysics"] = ("math", ugphysics(args.ugphysics))
    found: dict[str, Any] = {}
    for name, (kind, official) in graders.items():
        if args.only not in (None, name):
            continue
        same, total, unexplained, why = compared(name, kind, official, args.every)
        found[f"forms/{name}"] = measure(same, limit=total)
        found[f"forms/{name}_unexplained"] = measure(len(unexplained))
        print(f"{name}: {same} of {total} the same", file=sys.stderr)
        for reason, count in why.most_common():
            print(f"  {count:4} {reason}", file=sys.stderr)
        for gold, form, verdict in unexplained:
            print(f"  no reason: gold {gold!r}, {form!r}, there {verdict}", file=sys.stderr)
    write_report(args.out, found)


def compared(
    name: str, kind: str, official: Verdict, every: int = 1
) -> tuple[int, int, list[tuple[str, str, bool]], Counter[str]]:
    """(verdicts that are the same, all, disagreements without a reason, how often each reason holds)."""
    reasons = yaml.safe_load((TABLE / "differs.yaml").read_text(encoding="utf-8"))[name]
    same = total = 0
    unexplained: list[tuple[str, str, bool]] = []
    why: Counter[str] = Counter()
    for gold in yaml.safe_load((TABLE / "forms.yaml").read_text(encoding="utf-8")):
        judged = list(forms(gold))[::every] if gold["kind"] == kind else []
        verdicts = official(gold, [form for form, _ in judged])
        for (form, right), verdict in zip(judged, verdicts, strict=True):
            total += 1
            same += verdict == right
            if verdict == right:
                continue
            if reason := next((one["why"] for one in reasons if holds(one, gold, form, right)), ""):
                why[reason] += 1
            else:
                unexplained.append((gold["gold"], form, verdict))
    return same, total, unexplained, why


def forms(gold: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """(form, whether a careful person takes it) of a gold; partial scores are left out."""
    yield from ((form, True) for form in (gold["gold"], *gold["right"]))
    yield from ((form, False) for form in gold["wrong"] if isinstance(form, str))


def each(verdict: Callable[[dict[str, Any], str], bool]) -> Verdict:
    return lambda gold, said: [verdict(gold, form) for form in said]


def holds(reason: dict[str, str], gold: dict[str, Any], form: str, right: bool) -> bool:
    """Whether a reason is of this disagreement: `missed` (right, and not taken there) or `taken`, with patterns."""
    return (
        reason["what"] == ("missed" if right else "taken")
        and re.search(reason.get("form", ""), form, re.DOTALL) is not None
        and re.search(reason.get("gold", ""), gold["gold"], re.DOTALL) is not None
    )


def math_verify(gold: dict[str, Any], form: str) -> bool:
    try:
        return verified(wrapped(gold["gold"]), wrapped(form), units=True)
    except Exception:  # the boundary: a grader of others that breaks takes nothing
        return False


def loaded(name: str, file: Path, stubs: dict[str, dict[str, Any]]) -> Any:
    """A file of official code as a module, with what it imports and does not need replaced."""
    for stub, contents in stubs.items():
        module = types.ModuleType(stub)
        vars(module).update(contents)
        sys.modules.setdefault(stub, module)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{file} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opencompass(folder: Path) -> Verdict:
    registry = types.SimpleNamespace(register_module=lambda *named: lambda function: function)
    stubs = {"opencompass": {}, "opencompass.registry": {"TEXT_POSTPROCESSORS": registry}}
    code = loaded("official_opencompass", folder / "opencompass" / "utils" / "text_postprocessors.py", stubs)
    return each(lambda gold, form: bool(code.first_capital_postprocess(form) == gold["gold"]))


def medxpertqa(folder: Path) -> Verdict:
    stubs = {
        "nltk": {},
        "nltk.tokenize": {"word_tokenize": str.split},
        "nltk.stem": {"WordNetLemmatizer": lambda: None},
    }
    code = loaded("official_medxpertqa", folder / "eval" / "utils.py", stubs)
    trigger = "Therefore, among {start} through {end}, the answer is"

    def verdict(gold: dict[str, Any], form: str) -> bool:
        options = gold.get("options") or list(gold.get("metadata", {}).get("letters", "ABCDEFGHIJ"))
        sample = {"options": options, "label": [gold["gold"]]}
        named = code.answer_cleansing("zero_shot", trigger, form, "medxpertqa", "text", sample)
        return bool(code.compute_accuracy(named, [gold["gold"]]))

    return each(verdict)


def number_target(gold: str) -> str:
    return f"#### {gold}"


def letter_target(gold: str) -> str:
    return f"({gold})"


def lm_eval(folder: Path, task: str, target: Callable[[str], str]) -> Verdict:
    """The filters of one of its task files, each with its metric; a form counts if one of the filters takes it."""
    package = types.ModuleType("lm_eval")  # its own __init__ loads every model
    package.__path__ = [str(folder / "lm_eval")]
    sys.modules["lm_eval"] = package
    extraction = importlib.import_module("lm_eval.filters.extraction")
    config = yaml.safe_load((folder / "lm_eval" / "tasks" / task).read_text(encoding="utf-8"))
    classes = {"regex": extraction.RegexFilter, "multi_choice_regex": extraction.MultiChoiceRegexFilter}
    metric = config["metric_list"][0]

    def plain(text: str) -> str:
        """As `exact_match` of lm_eval brings prediction and reference to one form."""
        for pattern in metric.get("regexes_to_ignore", []):
            text = re.sub(pattern, "", text)
        text = text.lower() if metric.get("ignore_case") else text
        return text.translate(str.maketrans("", "", string.punctuation)) if metric["ignore_punctuation"] else text

    def verdicts(gold: dict[str, Any], said: list[str]) -> list[bool]:
        document = {"choices": gold.get("options", []), "question": "q"}
        taken = [False] * len(said)
        for one in config["filter_list"]:
            replies = said
            for step in one["filter"]:
                if made := classes.get(step["function"]):
                    options = {key: value for key, value in step.items() if key != "function"}
                    (replies,) = made(**options).apply([replies], [document])
            right = plain(target(gold["gold"]))
            taken = [was or plain(reply) == right for was, reply in zip(taken, replies, strict=True)]
        return taken

    return verdicts


def ugphysics(folder: Path) -> Verdict:
    sys.path.insert(0, str(folder / "codes"))
    code = loaded("official_ugphysics", folder / "codes" / "judge.py", {"chardet": {}})
    judger = code.Judger(strict_extract=True)

    def verdict(gold: dict[str, Any], form: str) -> bool:
        """A form without a box or "answer is" is boxed, as that code takes nothing else."""
        said = form if re.search(r"oxed\{|answer is|answer:", form) else wrapped(form)
        with contextlib.redirect_stdout(io.StringIO()):
            return bool(judger.auto_judge(said, wrapped(gold["gold"])))

    return each(verdict)


if __name__ == "__main__":
    main()
