"""The evaluation sets, as one table: where the rows are, how they become Tasks, how many are taken and how often.

    load_benchmark("ugphysics", path="rows.jsonl", seed=0, limit=0) -> Selection(benchmark, tasks, record)

Rows come from the published evaluation set of the paper (`daixuancheng/llm-in-sandbox-bench`, one config each), from
the original release, or from a local file or folder in either schema; which schema a row has is seen from its fields.
Rows that were repeated for an average (AIME25 is published 16 times over) are taken once: repeats are the evaluator's
doing. Selection is seeded and recorded row by row. A bad row is named and left out; a set without a good row is an
error.

Size: seven sets in two schemas each; the readers of rows stand beside the table that names them.
"""

import contextlib
import functools
import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sandboxrl.data.context import few
from sandboxrl.data.errors import InputError, nearest, one_line
from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import json_field
from sandboxrl.data.formats.names import ANSWER, QUESTION
from sandboxrl.data.formats.published import printed_letters
from sandboxrl.data.formats.swebench import swebench_gold
from sandboxrl.data.hub import Origin
from sandboxrl.data.plugin import is_own
from sandboxrl.data.reading import Rejected, Row
from sandboxrl.data.sources import SOURCES, load_source
from sandboxrl.data.task import Task

PUBLISHED = "daixuancheng/llm-in-sandbox-bench"

_MIN_ASCII = 12
"""ASCII letters and digits by which a name is found whose other characters were lost."""


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


@dataclass(frozen=True)
class Selection:
    """The tasks of one benchmark, and what has to be known to select them again."""

    benchmark: Benchmark
    tasks: list[Task]
    record: dict[str, Any] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------- fields of a row


def _text(row: Row, *names: str) -> str:
    """The first of these fields that is there, as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    raise InputError(f"no text in {' or '.join(map(repr, names))}")


def _published(row: Row) -> bool:
    return "problem_statement" in row and "ground_truth" in row


def _published_task(where: str, row: Row, source: str, reward: str, **metadata: Any) -> Task:
    """A row of the published set: `id, domain, problem_statement, ground_truth, input_files`."""
    question, gold = _text(row, "problem_statement"), _text(row, "ground_truth")
    files = json_field(row, "input_files") or {}
    if not isinstance(files, Mapping):
        raise InputError("'input_files' is not an object of names and texts")
    return Task(
        id=str(row.get("id") or digest(question, gold)),
        source=source,
        question=question,
        gold=gold,
        reward=reward,
        # the columns of all rows are merged where it was stored: a null stands for a file of another row
        documents=few({str(name): str(text) for name, text in files.items() if text is not None}),
        metadata=metadata,
    )


# -------------------------------------------------------------------------------------------------------------- readers

_LOST_ESCAPES = {"\x07": "\\a", "\x08": "\\b", "\x0b": "\\v", "\x0c": "\\f", "\t": "\\t", "\r": "\\r"}
_LOST = re.compile(r"[\x07\x08\x0b\x0c](?=[a-z])|\t(?=riangle|imes|ext\b|heta|an\b|o\b|frac)|\r(?=ight|ho\b|angle)")


def restored_latex(text: str) -> str:
    r"""LaTeX whose backslashes were read as escapes: a form feed and `rac` is `\frac` again (AIME25: 18, 19, 27)."""
    return _LOST.sub(lambda match: _LOST_ESCAPES[match[0]], text)


def _aime25(where: str, row: Row, documents: Path | None) -> Task:
    if _published(row):
        task = _published_task(where, row, "aime25", "math")
        return replace(task, question=restored_latex(task.question))
    question = restored_latex(_text(row, *QUESTION))
    number = str(row.get("id") or row.get("problem_idx") or digest(question))
    return Task(number, "aime25", question, _text(row, *ANSWER), "math")


def _ugphysics(where: str, row: Row, documents: Path | None) -> Task:
    if _published(row):
        named = re.fullmatch(r"ugphysics_(.+)_\d+", str(row.get("id", "")))
        return _published_task(where, row, "ugphysics", "judge_physics", stratum=named[1] if named else "")
    if str(row.get("language", "EN")).upper() != "EN":
        raise InputError("not an English row (the copies of UGPhysics mix languages)")
    subject = str(row.get("subject") or _file_of(where))
    metadata = {"stratum": subject, "solution": str(row.get("solution") or ""), "unit": str(row.get("unit") or "")}
    return Task(
        id=f"{subject}-{row.get('index', digest(_text(row, 'problem')))}",
        source="ugphysics",
        question=_text(row, "problem"),
        gold=_text(row, "answers"),
        reward="judge_physics",
        metadata={key: value for key, value in metadata.items() if value},
    )


def _chembench(where: str, row: Row, documents: Path | None) -> Task:
    if _published(row):
        named = re.fullmatch(r"chembench4k_(.+)_\d+", str(row.get("id", "")))
        letters = printed_letters(str(row["problem_statement"])) or "ABCD"
        task = _published_task(where, row, "chembench", "choice", letters=letters, stratum=named[1] if named else "")
        return _checked_letter(task, letters)
    question = _text(row, "question").strip()
    options = tuple(str(row[letter]) for letter in "ABCD" if row.get(letter) is not None)
    if len(options) != 4:
        raise InputError("not four options A to D")
    stratum = _file_of(where).removesuffix("_benchmark")
    gold = _text(row, "answer").strip()
    task = Task(
        digest(question, *options),
        "chembench",
        question,
        gold,
        "choice",
        options=options,
        metadata={"stratum": stratum},
    )
    return _checked_letter(task, "ABCD")


def _medxpertqa(where: str, row: Row, documents: Path | None) -> Task:
    if _published(row):
        letters = printed_letters(str(row["problem_statement"])) or "ABCDEFGHIJ"
        return _checked_letter(_published_task(where, row, "medxpertqa", "choice", letters=letters), letters)
    offered = json_field(row, "options")
    if isinstance(offered, list):
        offered = {str(one.get("letter")): str(one.get("content")) for one in offered if isinstance(one, Mapping)}
    if not isinstance(offered, Mapping) or "".join(sorted(offered)) != "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(offered)]:
        raise InputError("'options' are not lettered A, B, C ... without a gap")
    label = row.get("label")
    gold = ", ".join(map(str, label)) if isinstance(label, list) else _text(row, "label")
    question = re.split(r"\n\s*Answer Choices:\s*\(A\)", _text(row, "question"))[0]  # they are shown as options already
    options = tuple(str(offered[letter]) for letter in sorted(offered))
    reward = "choices" if "," in gold else "choice"
    task = Task(str(row.get("id") or digest(question)), "medxpertqa", question, gold, reward, options=options)
    return _checked_letter(task, "".join(task.letters()))


def _checked_letter(task: Task, letters: str) -> Task:
    if not all(part.strip() in letters and len(part.strip()) == 1 for part in task.gold.split(",")):
        raise InputError(f"the answer {task.gold!r} is none of the options {letters}")
    return task


def _aa_lcr(where: str, row: Row, documents: Path | None) -> Task:
    if _published(row):
        task = _published_task(where, row, "aa_lcr", "judge_equality")
        if not task.documents:
            raise InputError("'input_files' holds no document")
        return task
    if documents is None:
        raise InputError("the documents of AA-LCR are files: name their folder (--documents DIR)")
    names = [name.strip() for name in _text(row, "data_source_filenames").split(";") if name.strip()]
    folders = [str(row.get(key) or "") for key in ("document_category", "document_set_id")]
    question = _text(row, "question")
    return Task(
        id=str(row.get("question_id") or digest(question)),
        source="aa_lcr",
        question=question,
        gold=_text(row, "answer").replace("\\n", "\n"),
        reward="judge_equality",
        documents={name: _document(documents, name, folders) for name in names},
    )


def _document(root: Path, name: str, folders: Sequence[str]) -> str:
    """The text of the file `name` below `root`; `folders` settle a tie. Names differ in Unicode form between releases,
    and the published archive has some in mojibake (their UTF-8 read as CP437), so all of these are one name."""
    known = _files_by_name(root)
    wanted = next((known[form] for form in _forms(name) if form in known), [])
    wanted = [path for path in wanted if all(folder in path.parts for folder in folders if folder)] or wanted
    if len(wanted) != 1:
        raise InputError(f"document {name!r} is {'not there' if not wanted else 'there more than once'} below {root}")
    return wanted[0].read_text(encoding="utf-8", errors="replace")


@functools.cache
def _files_by_name(root: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            for form in _forms(path.name):
                files[form].append(path)
    return files


def _forms(name: str) -> list[str]:
    """What a name is found by, the closest first: its letters and digits, those of the name that its mojibake stands
    for, and the ASCII ones of a name that has enough of them."""
    read = [name]
    for code in ("cp437", "cp1252", "latin-1"):
        with contextlib.suppress(UnicodeError):
            read.append(name.encode(code).decode("utf-8"))
    forms = [_skeleton(one) for one in read]
    ascii_only = re.sub(r"[^a-z0-9]", "", _skeleton(name))
    forms.append(f"ascii {ascii_only}" if len(ascii_only) > _MIN_ASCII else "")
    return [form for form in dict.fromkeys(forms) if form]


def _skeleton(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).casefold()
    return "".join(char for char in plain if char.isalnum())


def _ifbench(where: str, row: Row, documents: Path | None) -> Task:
    checks = json_field(row, "ground_truth") if _published(row) else row
    names, arguments = checks.get("instruction_id_list"), checks.get("kwargs")
    if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments) or not names:
        raise InputError("'instruction_id_list' and 'kwargs' are not lists of the same length")
    kept = [{key: value for key, value in (one or {}).items() if value is not None} for one in arguments]
    question = _text(row, "problem_statement", "prompt")
    return Task(
        id=str(row.get("id") or row.get("key") or digest(question)),
        source="ifbench",
        question=question,
        gold=json.dumps({"instruction_id_list": names, "kwargs": kept}, ensure_ascii=False),
        reward="ifbench",
    )


def _swebench(where: str, row: Row, documents: Path | None) -> Task:
    name = _text(row, "instance_id")
    official = f"swebench/sweb.eval.x86_64.{name.replace('__', '_1776_').lower()}:latest"
    return Task(
        id=name,
        source="swebench_verified",
        question=_text(row, "problem_statement").replace("\r\n", "\n"),
        gold=json.dumps(swebench_gold(row), ensure_ascii=False),
        reward="tests",
        image=str(row.get("image", row.get("docker_image", official))),  # a row of one's own may need none: ""
        metadata={"repository": str(row.get("repo") or ""), "commit": str(row.get("base_commit") or "")},
    )


def _file_of(where: str) -> str:
    return Path(where.rpartition(":")[0]).stem


# ------------------------------------------------------------------------------------------------------------ the table

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
        Benchmark("aime25", "Math", "math", ("math-ai/aime25", (), "test"), _aime25, 30, repeats=16),
        Benchmark(
            "ugphysics", "Physics", "physics", ("UGPhysics/ugphysics", PHYSICS_SUBJECTS, "en"), _ugphysics, 650,
            strata=50,
        ),
        Benchmark(
            "chembench", "Chem.", "chem", ("AI4Chem/ChemBench4K", CHEMISTRY_TASKS, "test"), _chembench, 450, strata=50,
        ),
        Benchmark("medxpertqa", "Biomed.", "biomed", ("TsinghuaC3I/MedXpertQA", ("Text",), "test"), _medxpertqa, 500),
        Benchmark(
            "aa_lcr", "Long-Cont.", "long_context", ("ArtificialAnalysis/AA-LCR", (), "test"), _aa_lcr, 100,
            repeats=4, max_tokens=131_072,
        ),
        Benchmark("ifbench", "Instruct.", "instruct_follow", ("allenai/IFBench_test", (), "train"), _ifbench, 300),
        Benchmark(
            "swebench_verified", "SWE", "", ("princeton-nlp/SWE-bench_Verified", (), "test"), _swebench, 500,
            modes=("sandbox",),
        ),
    )
}  # fmt: skip


def benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}{nearest(name, BENCHMARKS)}")
    return BENCHMARKS[name]


def load_benchmark(
    name: str,
    path: str = "",
    seed: int = 0,
    limit: int = 0,
    documents: str = "",
    revision: str = "",
    commits: MutableMapping[str, str] | None = None,
) -> Selection:
    """The tasks of benchmark `name`, selected with `seed`; at most `limit` of them (0: all).

    `path` is a local file or folder of rows; `original` for the original release on the hub; empty for the published
    set. `documents` is a folder of documents for rows that only name them. `revision` pins the hub's; `commits` are
    those that are known (see `sandboxrl.data.hub`). Raises InputError.
    """
    one = benchmark(name)
    rejected: list[Rejected] = []
    root = Path(documents) if documents else None
    local = path not in ("", "original")
    if local and revision:
        raise InputError(f"benchmark {name}: revision has no effect on a local copy ({path})")
    origins = [Origin(path)] if local else _hub(one, path, revision)
    pins: MutableMapping[str, str] = {} if commits is None else commits
    tasks: dict[str, Task] = {}
    num_rows = 0
    for where, row in _rows(name, origins, pins, rejected):
        num_rows += 1
        try:
            assert one.read is not None
            task = one.read(where, row, root)
        except InputError as error:
            rejected.append(Rejected(where, one_line(error)))
            continue
        tasks.setdefault(digest(task.question, task.gold, *task.options, *task.documents.values()), task)
    if not tasks:
        reason = f": {rejected[0]}" if rejected else ""
        raise InputError(f"benchmark {name}: no usable row in {path or PUBLISHED}{reason}")
    chosen = _limited(_selected(one, list(tasks.values()), seed), limit, f"{seed}:{name}")
    _require_distinct_ids(one, chosen)
    record = {
        "benchmark": name,
        "rows": path if local else [f"{origin.asked}:{origin.config}".strip(":") for origin in origins],
        "commits": {origin.asked: pins[origin.asked] for origin in origins if not origin.local},
        "seed": seed,
        "limit": limit,
        "num_rows": num_rows,
        "num_distinct": len(tasks),
        "ids": [task.id for task in chosen],
        "digest": digest(*(task.to_json() for task in chosen)),
        "rejected": [str(row) for row in rejected],
    }
    return Selection(one, chosen, record)


def load_set(name: str, path: str, seed: int, limit: int, commits: MutableMapping[str, str] | None = None) -> Selection:
    """Any source of tasks, or file of tasks or rows, as a set to evaluate: `name` is one, or what `path` is called.
    Raises InputError."""
    spec = path or name
    if not path and name not in SOURCES and not is_own(name) and not Path(name).exists():
        known = nearest(name, [*BENCHMARKS, *SOURCES])
        raise InputError(f"unknown benchmark {name!r}{known} (or a file of tasks or rows)")
    rejected: list[Rejected] = []
    pins: dict[str, str] = {}
    tasks = load_source(spec, rejected, seed, pins if commits is None else commits)
    title = name if path or name in SOURCES else Path(name.rpartition(":")[2] if is_own(name) else name).stem
    one = Benchmark(title, title, num_tasks=len(tasks))
    chosen = _limited(tasks, limit, f"{seed}:{title}")
    _require_distinct_ids(one, chosen)
    record = {
        "benchmark": title,
        "rows": spec,
        "commits": pins if commits is None else {},
        "seed": seed,
        "limit": limit,
        "num_rows": len(tasks) + len(rejected),
        "num_distinct": len(tasks),
        "ids": [task.id for task in chosen],
        "digest": digest(*(task.to_json() for task in chosen)),
        "rejected": [str(row) for row in rejected],
    }
    return Selection(one, chosen, record)


def _selected(one: Benchmark, tasks: list[Task], seed: int) -> list[Task]:
    """The paper's number of rows, of each stratum where there are strata, in their own order."""
    if not one.strata:
        return _limited(tasks, one.num_tasks, f"{seed}:{one.name}")
    strata: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        strata[str(task.metadata.get("stratum", ""))].append(task)
    if set(strata) == {""}:
        return _limited(tasks, one.num_tasks, f"{seed}:{one.name}")
    kept = {task.id for name in strata for task in _limited(strata[name], one.strata, f"{seed}:{one.name}:{name}")}
    return [task for task in tasks if task.id in kept]


def _limited(tasks: list[Task], limit: int, seed: str) -> list[Task]:
    """A random sample of `limit` tasks in their own order; a smaller limit takes a part of what a larger one takes."""
    if not limit or limit >= len(tasks):
        return tasks
    order = list(range(len(tasks)))
    random.Random(seed).shuffle(order)
    return [tasks[i] for i in sorted(order[:limit])]


def _require_distinct_ids(one: Benchmark, tasks: list[Task]) -> None:
    double = [name for name, count in Counter(task.id for task in tasks).items() if count > 1]
    if double:
        raise InputError(f"benchmark {one.name}: different rows share the id {double[0]!r}")


def _hub(one: Benchmark, path: str, revision: str) -> list[Origin]:
    """Where its rows are on the Hub: the published set, or each config of the original release."""
    name, configs, split = (PUBLISHED, (one.config,), "test") if path == "" and one.config else one.original
    return [Origin(dataset=name, config=config, split=split, revision=revision) for config in configs or ("",)]


def _rows(
    name: str, origins: Sequence[Origin], commits: MutableMapping[str, str], rejected: list[Rejected]
) -> Iterator[tuple[str, Row]]:
    try:
        for origin in origins:
            yield from origin.pinned(commits).rows(rejected)
    except InputError as error:
        raise InputError(f"benchmark {name}: {error} (to `evaluate`: --data {name}=PATH or {name}=@REVISION)") from None
