"""`sandboxrl evaluate` from end to end: all seven benchmarks in both modes, offline; its errors; its files."""

import json

import pytest

from sandboxrl.launch.__main__ import main
from sandboxrl.rl.evaluation.evaluate import read_results
from sandboxrl.rl.evaluation.models import ModelSpec, paper_sampling
from tests.data.test_benchmarks import ORIGINAL, PUBLISHED
from tests.envs.grading.processes.test_ifbench import VERIFIER
from tests.rl.evaluation.test_evaluate import needs_bubblewrap

PASSES_WHEN = (
    """[ "$(cat answer.txt)" = "{answer}" ] && echo "PASSED t.py::test_x" || echo "FAILED t.py::test_x - no" """
)


@pytest.fixture
def words(tmp_path):
    """The command line that finds a row of one's own for every benchmark."""
    (tmp_path / "ifbench").mkdir()
    (tmp_path / "ifbench" / "instructions_registry.py").write_text(VERIFIER)
    swe = ORIGINAL["swebench_verified"] | {
        "image": "",
        "eval_script": PASSES_WHEN.format(answer="no such answer"),
        "FAIL_TO_PASS": ["t.py::test_x"],
        "PASS_TO_PASS": [],
    }
    said = json.dumps({"instruction_id_list": ["count:keyword"], "kwargs": [{"keyword": "such", "n": 1}]})
    rows = PUBLISHED | {"swebench_verified": swe, "ifbench": PUBLISHED["ifbench"] | {"ground_truth": said}}
    found = [f"grader.ifbench={tmp_path}/ifbench", "--judge", "scripted:judge", "--repeats", "2"]
    for name, row in rows.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(row) + "\n")
        found += ["--data", f"{name}={file}"]
    return [*found, "--benchmarks", ",".join(rows)]


def test_all_seven_benchmarks_in_both_modes_and_a_second_run_changes_nothing(tmp_path, words, capsys):
    needs_bubblewrap()
    out = tmp_path / "out"
    assert main(["evaluate", "scripted:gold", *words, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary) == 7
    for name, modes in summary.items():
        assert set(modes) == ({"sandbox"} if name == "swebench_verified" else {"llm", "sandbox"})
        for numbers in modes.values():
            assert numbers["score"] == 1.0 and numbers["num_results"] == 2 and numbers["num_missing"] == 0
    assert "swebench_verified" in capsys.readouterr().out
    before = {name: (out / name).read_bytes() for name in ("results.jsonl", "summary.json", "failures.jsonl")}
    assert main(["evaluate", "scripted:gold", *words, "--out", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    assert len(list((out / "judge").rglob("*.json"))) == 2  # one verdict each: repeats and modes said the same


def test_silence_scores_zero_everywhere(tmp_path, words):
    needs_bubblewrap()
    assert main(["evaluate", "scripted:silent", *words, "--out", str(tmp_path / "out")]) == 0
    assert {one.score for one in read_results(tmp_path / "out")} == {0.0}


def test_the_gold_of_no_task_enters_a_sandbox_or_a_prompt(tmp_path):
    needs_bubblewrap()
    row = PUBLISHED["aa_lcr"] | {"ground_truth": "Zanzibar7"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    line = f"evaluate scripted:silent --benchmarks aa_lcr --data aa_lcr={tmp_path}/rows.jsonl --repeats 1"
    line += f" --judge scripted:judge --keep-tokens --out {tmp_path}/out"
    assert main(line.split()) == 0
    for one in read_results(tmp_path / "out"):
        assert one.metadata.pop("gold") == "Zanzibar7"
        assert "Zanzibar7" not in json.dumps(one.to_dict())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("scripted:gold --benchmarks aime52", "did you mean 'aime25'"),
        ("scripted:gold --benchmarks aime25 --data aime25=/nowhere.jsonl", "no such file"),
        ("scripted:gold --benchmarks aime25 --data chembench=x", "valid: aime25"),
        ("scripted:gold --benchmarks aime25 --limit -1", "--limit"),
        ("scripted:gold --benchmarks swebench_verified --mode llm --data swebench_verified={swe}", "no llm mode"),
        ("scripted:golden --benchmarks aime25 --data aime25={aime}", "did you mean 'gold'"),
        ("/no/folder --benchmarks aime25 --data aime25={aime}", "neither a model folder"),
        ("http://127.0.0.1:9/v1 --benchmarks aime25 --data aime25={aime} --mode llm", "--model NAME"),
        ("scripted:gold --benchmarks aa_lcr --data aa_lcr={lcr} --mode llm", "--judge"),
        ("scripted:gold --benchmarks ifbench --data ifbench={ifbench} --mode llm", "grader.ifbench=DIR"),
        ("scripted:gold --benchmarks swebench_verified --data swebench_verified={swe}", "sandbox.backend=docker"),
        ("scripted:gold --benchmarks aime25 --data aime25={aime} --arm papre", "did you mean 'paper'"),
        ("scripted:gold --benchmarks aime25 --data aime25={aime} grader.scheme=loose --mode llm", "strict"),
    ],
)
def test_wrong_input_is_one_clear_line(tmp_path, capsys, line, told):
    names = {"aime": "aime25", "swe": "swebench_verified", "lcr": "aa_lcr", "ifbench": "ifbench"}
    for key, name in names.items():
        (tmp_path / f"{key}.jsonl").write_text(json.dumps((ORIGINAL | PUBLISHED)[name]) + "\n")
    line = line.format(**{key: tmp_path / f"{key}.jsonl" for key in names})
    assert main(["evaluate", *line.split(), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sandboxrl evaluate: ") and told in error


def test_the_papers_sampling_is_found_by_the_models_name():
    assert paper_sampling("models/Qwen3-4B-Instruct-2507", "").top_k == 20
    assert paper_sampling("http://x/v1", "Qwen/Qwen3-Coder-30B-A3B-Instruct").repetition_penalty == 1.05
    assert paper_sampling("http://x/v1", "MiniMaxAI/MiniMax-M2").top_k == 40
    assert paper_sampling("runs/mine", "").temperature == 1.0


def test_a_model_that_changes_in_its_place_is_another_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    first = ModelSpec(str(tmp_path)).digest()
    assert first == ModelSpec(str(tmp_path)).digest() and ModelSpec("scripted:gold").digest() == ""
    (tmp_path / "model.safetensors").write_bytes(b"x" * 99 + b"y")
    assert ModelSpec(str(tmp_path)).digest() != first


def test_no_secret_of_a_url_is_written_down():
    assert ModelSpec("http://ada:secret@host:80/v1?key=x").public_name == "http://host:80/v1"
