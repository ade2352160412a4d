"""The seven benchmarks: both schemas of each, seeded selection, the traps of the published rows, and real rows."""

import json
import os
import subprocess
import unicodedata
from pathlib import Path

import pytest

from sandboxrl.data.benchmarks import BENCHMARKS, benchmark, load_benchmark, restored_latex
from sandboxrl.data.errors import InputError
from sandboxrl.envs.grading.code.repository_tests import parse_test_gold, score_tests
from sandboxrl.envs.grading.kinds import KINDS
from tests.envs.grading.scoring import check, score

SWE_PATCH = "diff --git a/tests/test_a.py b/tests/test_a.py\n@@ -1 +1,2 @@\n x\n+y\n"

PUBLISHED = {
    "aime25": {"id": "aime25_0_00", "problem_statement": "What is 2+2?", "ground_truth": "4"},
    "ugphysics": {
        "id": "ugphysics_WaveOptics_00001",
        "problem_statement": "How long is the wave?",
        "ground_truth": r"\boxed{493.7}",
    },
    "chembench": {
        "id": "chembench4k_Solvent_Prediction_00003",
        "problem_statement": "Which solvent?\nA. water\nB. ether\nC. oil\nD. none",
        "ground_truth": "B",
    },
    "medxpertqa": {
        "id": "medxpertqa_Text-7",
        "problem_statement": "What is it? (A) a (B) b (C) c (D) d (E) e (F) f (G) g (H) h (I) i (J) j",
        "ground_truth": "J",
    },
    "aa_lcr": {
        "id": "aa_lcr_1",
        "problem_statement": "Who paid?",
        "ground_truth": "Ada",
        "input_files": json.dumps({"a report.txt": "Ada paid.", "of another row.txt": None}),
    },
    "ifbench": {
        "id": "ifbench_0_00",
        "problem_statement": "Say sun.",
        "ground_truth": json.dumps(
            {"instruction_id_list": ["count:keyword"], "kwargs": [{"keyword": "sun", "n": 1.0, "other": None}]}
        ),
    },
}
ORIGINAL = {
    "aime25": {"id": "2025-I-1", "contest": "I", "number": 1, "problem": "What is 2+2?", "answer": 4},
    "ugphysics": {
        "index": 3,
        "domain": "Optics",
        "subject": "WaveOptics",
        "problem": "How long?",
        "solution": "Measure.",
        "answers": r"\boxed{493.7}",
        "answer_type": "NV",
        "unit": "nm",
        "language": "EN",
    },
    "chembench": {"question": "\nHow many?", "answer": "C", "C": 0.5, "A": 0, "D": 6, "B": 4},
    "medxpertqa": {
        "id": "Text-7",
        "question": "What is it?\nAnswer Choices: (A) x (B) y",
        "options": [{"letter": "B", "content": "y"}, {"letter": "A", "content": "x"}],
        "label": ["B"],
    },
    "aa_lcr": {
        "document_category": "Reports",
        "document_set_id": "set 1",
        "question_id": 5,
        "question": "Who paid?",
        "answer": r"Ada\nEve",
        "data_source_filenames": "Café – 2024.txt;b.txt",
    },
    "ifbench": {
        "key": "0",
        "prompt": "Say sun.",
        "instruction_id_list": ["count:keyword"],
        "kwargs": [{"keyword": "sun", "n": 1.0, "other": None}],
    },
    "swebench_verified": {
        "repo": "psf/requests",
        "instance_id": "psf__requests-1",
        "base_commit": "abc",
        "test_patch": SWE_PATCH,
        "problem_statement": "It breaks.\r\nFix it.",
        "FAIL_TO_PASS": json.dumps(["tests/test_a.py::test_y"]),
        "PASS_TO_PASS": ["tests/test_a.py::test_x"],
    },
}


def write(path: Path, *rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def documents(tmp_path):
    folder = tmp_path / "texts" / "Reports" / "set 1"
    folder.mkdir(parents=True)
    (folder / "Cafe\u0301 – 2024.txt").write_text("Ada paid.")  # decomposed, as some archives have it
    (folder / "b.txt").write_text("Eve too.")
    (tmp_path / "texts" / "b.txt").write_text("of another set")
    return str(tmp_path / "texts")


def one(name, row, tmp_path, **options):
    return load_benchmark(name, write(tmp_path / "rows.jsonl", row), **options).tasks[0]


CASES = [(name, "published") for name in PUBLISHED] + [(name, "original") for name in ORIGINAL]


@pytest.mark.parametrize(("name", "schema"), CASES)
def test_both_schemas_load_and_their_golds_can_score(name, schema, tmp_path, documents):
    row = (PUBLISHED if schema == "published" else ORIGINAL)[name]
    task = one(name, row, tmp_path, documents=documents)
    assert task.source == name and task.question.strip() == task.question and "\r" not in task.question
    check(task)
    if not KINDS[task.reward].needs:
        assert score(task, task.gold) == 1.0 and score(task, "") == 0.0


def test_the_table_is_the_papers():
    assert {name: (row.domain, row.num_tasks, row.repeats) for name, row in BENCHMARKS.items()} == {
        "aime25": ("Math", 30, 16), "ugphysics": ("Physics", 650, 1), "chembench": ("Chem.", 450, 1),
        "medxpertqa": ("Biomed.", 500, 1), "aa_lcr": ("Long-Cont.", 100, 4), "ifbench": ("Instruct.", 300, 1),
        "swebench_verified": ("SWE", 500, 1),
    }  # fmt: skip
    assert BENCHMARKS["aa_lcr"].max_tokens == 131_072 and BENCHMARKS["swebench_verified"].modes == ("sandbox",)
    with pytest.raises(InputError, match="did you mean 'aime25'"):
        benchmark("aime2025")


def test_options_become_the_rows_own_letters(tmp_path):
    assert one("chembench", ORIGINAL["chembench"], tmp_path).options == ("0", "4", "0.5", "6")
    medical = one("medxpertqa", ORIGINAL["medxpertqa"], tmp_path)
    assert medical.options == ("x", "y") and medical.question == "What is it?" and medical.gold == "B"
    published = one("medxpertqa", PUBLISHED["medxpertqa"], tmp_path)
    assert published.metadata["letters"] == "ABCDEFGHIJ"
    assert score(published, "Answer: J") == 1.0


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("東京都の報告書.txt", "東京都の報告書.txt"),
        ("東京都の報告書.txt", "東京都の報告書.txt".encode().decode("cp437")),
        ("中国经济.txt", "中国经济.txt".encode().decode("cp437")),
        ("ガイド.txt", unicodedata.normalize("NFD", "ガイド.txt")),
        ("Étude – marché.txt", "Étude – marché.txt".encode().decode("cp437")),
        ("Étude – marché.txt", unicodedata.normalize("NFD", "Étude – marché.txt").encode().decode("cp437")),
        ("Bericht über Öl.txt", "Bericht über Öl.txt".encode().decode("latin-1")),
    ],
    ids=["CJK", "CJK in CP437", "Chinese in CP437", "kana, NFD", "accents in CP437", "NFD in CP437", "Latin-1"],
)
def test_documents_with_cjk_and_mangled_names_are_found(tmp_path, name, stored):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "北京.txt").write_text("another")
    (folder / stored.replace("/", "_")).write_text("the one")
    task = one("aa_lcr", ORIGINAL["aa_lcr"] | {"data_source_filenames": name}, tmp_path, documents=folder)
    assert task.documents == {name: "the one"}


def test_documents_are_found_whatever_the_form_of_their_names(tmp_path, documents):
    task = one("aa_lcr", ORIGINAL["aa_lcr"], tmp_path, documents=documents)
    assert task.documents == {"Café – 2024.txt": "Ada paid.", "b.txt": "Eve too."}
    assert task.gold == "Ada\nEve"
    with pytest.raises(InputError, match="--documents DIR"):
        one("aa_lcr", ORIGINAL["aa_lcr"], tmp_path)
    with pytest.raises(InputError, match="'c.txt' is not there"):
        one("aa_lcr", ORIGINAL["aa_lcr"] | {"data_source_filenames": "c.txt"}, tmp_path, documents=documents)
    published = one("aa_lcr", PUBLISHED["aa_lcr"], tmp_path)
    assert published.documents == {"a report.txt": "Ada paid."}


def test_null_arguments_of_ifbench_are_dropped(tmp_path):
    for row in (PUBLISHED["ifbench"], ORIGINAL["ifbench"]):
        assert json.loads(one("ifbench", row, tmp_path).gold)["kwargs"] == [{"keyword": "sun", "n": 1.0}]


def test_lost_escapes_are_restored():
    assert restored_latex("$\x0crac{1}{2}$ and\t\triangle ABC\tthen") == "$\\frac{1}{2}$ and\t\\triangle ABC\tthen"


def test_swe_bench_runs_the_tests_that_its_patch_adds(tmp_path):
    task = one("swebench_verified", ORIGINAL["swebench_verified"], tmp_path)
    gold = parse_test_gold(task)
    assert task.image == "swebench/sweb.eval.x86_64.psf_1776_requests-1:latest"
    script = gold.command.splitlines()
    run = next(i for i, line in enumerate(script) if line.endswith("no:cacheprovider tests/test_a.py"))
    assert any(line.startswith("git apply") for line in script[:run])
    # the lines after the patch, run by a shell in which the suite is another program
    for tests, code, right in (("PASSED", 0, 1.0), ("FAILED", 1, 0.0), ("PASSED", 3, 0.0)):
        suite = (
            f"python() {{ echo PASSED tests/test_a.py::test_x; echo {tests} tests/test_a.py::test_y; return {code}; }}"
        )
        output = subprocess.check_output(["bash", "-c", "\n".join([suite, *script[run - 1 :]])], text=True)
        assert score_tests(gold, output) == right
    own = one("swebench_verified", ORIGINAL["swebench_verified"] | {"eval_script": "make check"}, tmp_path)
    assert parse_test_gold(own).command == "make check"


BAD = [
    ("aime25", {"problem": "What?"}, "'answer'"),
    ("ugphysics", ORIGINAL["ugphysics"] | {"language": "ZH"}, "not an English row"),
    ("chembench", {"question": "q", "answer": "E", "A": 1, "B": 2, "C": 3, "D": 4}, "none of the options"),
    ("chembench", {"question": "q", "answer": "A", "A": 1, "B": 2}, "four options"),
    (
        "medxpertqa",
        ORIGINAL["medxpertqa"] | {"options": [{"letter": "A", "content": "x"}, {"letter": "C"}]},
        "lettered",
    ),
    ("medxpertqa", ORIGINAL["medxpertqa"] | {"label": ["K"]}, "none of the options"),
    ("aa_lcr", PUBLISHED["aa_lcr"] | {"input_files": '{"../../etc/x": "y"}'}, "leave /testbed/documents"),
    ("aa_lcr", PUBLISHED["aa_lcr"] | {"input_files": "{"}, "input_files"),
    ("ifbench", ORIGINAL["ifbench"] | {"kwargs": []}, "same length"),
    ("swebench_verified", ORIGINAL["swebench_verified"] | {"FAIL_TO_PASS": "[]"}, "any change would pass"),
    ("swebench_verified", ORIGINAL["swebench_verified"] | {"test_patch": None}, "eval_script"),
]


@pytest.mark.parametrize(("name", "row", "reason"), BAD)
def test_a_bad_row_is_named_and_the_good_ones_are_kept(name, row, reason, tmp_path, documents):
    good = ORIGINAL[name] | {"problem_statement": "Another.", "instance_id": "other__one-1"}
    selection = load_benchmark(name, write(tmp_path / "rows.jsonl", row, good), documents=documents)
    assert len(selection.tasks) == 1
    (told,) = selection.record["rejected"]
    assert "rows.jsonl:1: " in told and reason in told


def test_repeated_rows_are_one_task(tmp_path):
    rows = [PUBLISHED["aime25"] | {"id": f"aime25_0_{i:02d}"} for i in range(16)]
    selection = load_benchmark("aime25", write(tmp_path / "rows.jsonl", *rows))
    assert [task.id for task in selection.tasks] == ["aime25_0_00"]
    assert selection.record["num_rows"] == 16 and selection.record["num_distinct"] == 1


def physics(subject, index):
    return ORIGINAL["ugphysics"] | {"subject": subject, "index": index, "problem": f"{subject} {index}?"}


def test_selection_is_seeded_stratified_and_recorded(tmp_path):
    rows = [physics(subject, i) for subject in ("WaveOptics", "Relativity") for i in range(80)]
    path = write(tmp_path / "rows.jsonl", *rows, *(physics("AtomicPhysics", i) for i in range(7)))
    first, again, other = (load_benchmark("ugphysics", path, seed=seed) for seed in (1, 1, 2))
    strata = [task.metadata["stratum"] for task in first.tasks]
    assert [strata.count(name) for name in ("WaveOptics", "Relativity", "AtomicPhysics")] == [50, 50, 7]
    assert first.tasks == again.tasks and first.record == again.record
    assert {task.id for task in first.tasks} != {task.id for task in other.tasks}
    assert first.record["ids"] == [task.id for task in first.tasks] and first.record["seed"] == 1
    few, more = (load_benchmark("ugphysics", path, limit=limit).record["ids"] for limit in (5, 9))
    assert len(few) == 5 and set(few) < set(more)


def test_different_rows_of_one_id_are_refused(tmp_path):
    rows = (PUBLISHED["aime25"], PUBLISHED["aime25"] | {"problem_statement": "What is 1+3?"})
    with pytest.raises(InputError, match="share the id"):
        load_benchmark("aime25", write(tmp_path / "rows.jsonl", *rows))


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no usable row"):
        load_benchmark("aime25", write(tmp_path / "rows.jsonl", {"x": 1}))
    with pytest.raises(InputError, match="no such file"):
        load_benchmark("aime25", str(tmp_path / "missing.jsonl"))


# ----------------------------------------------------------------------------------------------------------- real rows

REAL = Path(os.environ.get("SANDBOXRL_REAL_DATA", "/nonexistent"))
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="SANDBOXRL_REAL_DATA names no folder of real rows")


@needs_real
@pytest.mark.parametrize(
    ("name", "path", "num_tasks"),
    [
        ("medxpertqa", "medxpertqa/medxpertqa_text_first60.jsonl", 60),
        ("ifbench", "ifbench/IFBench_first60.jsonl", 60),
        ("chembench", "chembench/dev", 10),
        ("chembench", "chembench/dev_partial", 5),
        ("swebench_verified", "swebench_verified/sweagent_lite_fixture_5rows.json", 5),
    ],
)
def test_real_rows(name, path, num_tasks):
    selection = load_benchmark(name, str(REAL / path))
    assert len(selection.tasks) == num_tasks and selection.record["rejected"] == []
    for task in selection.tasks:
        check(task)
        if task.reward == "choice":
            assert score(task, task.gold) == 1.0
            assert "Answer Choices" not in task.question and task.letters()
        if task.reward == "tests":
            assert parse_test_gold(task).FAIL_TO_PASS
