"""A checkpoint behind a real vLLM server: measured by our harness, by lm-eval and by llm-in-sandbox's.

    python -m bench.served MODEL --out DIR [--image IMAGE] [--ifbench DIR] [--lm-eval PYTHON] [--peer-python PYTHON]

MODEL is a Hugging Face folder, such as `sandboxrl export runs/tiny --out MODEL` writes. Against the one server:

1. all seven benchmarks in both modes, on own rows and on real ones where SANDBOXRL_REAL_DATA names a folder of them
   (IFBench's real rows also want the official verifier: `--ifbench`); the same command again; `analyze`;
2. the two judged benchmarks with the same small model as judge: what it says is no verdict and must not be scored;
3. `run`: one prompt with files in and artifacts out;
4. with `--lm-eval`, the python of an environment with lm_eval[api] and transformers: a task that reads
   log-probabilities and one that generates, both written here, so that nothing is downloaded;
5. with `--peer-python` and `--image`, the python of an environment with llm-in-sandbox==0.2.0 and mcp: its benchmark
   runner on the same rows, its trajectories read by `analyze`.

With `--image` every sandbox is a Docker container and the SWE-bench row's repository is an image of its own, made and
removed here; otherwise bubblewrap. DIR keeps everything: rows, server log, evaluation folders, tables, `report.json`.
The model of the quickstart can do the AA-LCR rows (its own kind of task) and nothing else: the other scores say that
the machinery runs, not what a model is worth.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.evaluate import execute
from bench.report import measure, write_report
from sandboxrl.data.benchmarks import BENCHMARKS
from sandboxrl.data.builtin import build
from sandboxrl.data.prompt.arms import load_arm, render
from sandboxrl.envs.policy.chat import ChatFormat, load_tokenizer
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.rl.engine.config import serve_command
from sandboxrl.rl.evaluation.evaluate import read_results
from sandboxrl.rl.learner.weights import free_port

ROOT = Path(__file__).resolve().parents[1]
NUM_ROWS = 4
"""Of each benchmark, at most."""
START_S = 240
REPOSITORY_IMAGE = "sandboxrl-served:repository"
ARM = """\
# The prompt that the small model knows, for every kind of answer.
extends: compact
answers: {math: "", judge_physics: "", judge_equality: "", ifbench: "", tests: ""}
"""
PROMPT_ARM = """\
# What the small model was trained on, word for word, though a person's files lie elsewhere: it will not find them.
extends: compact
system: Find the answer in /testbed/documents and write it to /testbed/answer.txt.
"""
FIX = "Addition is wrong. Fix `add` in /testbed/calc.py."
TEST = (
    'cd /testbed && python3 -c "from calc import add; '
    "print('PASSED' if add(2, 3) == 5 else 'FAILED', 't.py::test_add'); "
    "print('PASSED' if add(0, 0) == 0 else 'FAILED', 't.py::test_zero')\""
)
VERIFIER = '''
"""One instruction with the interface of the official verifier, for the rows made by bench.served."""


class Keyword:
    def __init__(self, name):
        self.name = name

    def build_description(self, *, keyword=None):
        self.keyword = keyword

    def get_instruction_args(self):
        return {"keyword": self.keyword}

    def check_following(self, text):
        return self.keyword in text


INSTRUCTION_DICT = {"count:keyword": Keyword}
'''


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.served", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not exist yet")
    parser.add_argument("--image", default="", help="Docker image of the sandboxes; empty: bubblewrap")
    parser.add_argument("--ifbench", default="", metavar="DIR", help="official verifier, for IFBench's real rows")
    parser.add_argument("--lm-eval", default="", metavar="PYTHON", help="of an environment with lm_eval[api]")
    parser.add_argument("--peer-python", default="", metavar="PYTHON", help="of one with llm-in-sandbox 0.2.0 and mcp")
    parser.add_argument("--max-model-len", type=int, default=4096, help="of the server (default: 4096)")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    args.out, model = args.out.resolve(), args.model.resolve()
    with serving(model, args.out / "serve.log", args.max_model_len) as url, repository(args.image) as image:
        words = [url, "--model", str(model), *benchmark_words(args.out, NUM_ROWS, 1024, image, args.ifbench)]
        if args.image:
            words += ["sandbox.backend=docker", f"sandbox.image={args.image}"]
        found = ours(args.out, words)
        found |= judged_by_itself(args.out, url, str(model))
        found |= one_prompt(args.out, url, str(model))
        if args.lm_eval:
            found |= lm_eval(args.out, url, model, args.lm_eval)
        if args.peer_python and args.image:
            found |= peer(args.out, url, str(model), args.image, args.peer_python)
    write_report(args.out / "report.json", found)


# ---------------------------------------------------------------------------------------------------------- the server


@contextlib.contextmanager
def serving(model: Path, log: Path, max_model_len: int) -> Iterator[str]:
    """The base URL of a vLLM server for `model`, which is called by its path there."""
    port = free_port()
    command = serve_command(str(model), "hermes", max_model_len)
    if command[0] == "python":
        command[0] = sys.executable
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the server does not start ({log}): {log.read_text()[-3000:]}") from None
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextlib.contextmanager
def repository(image: str) -> Iterator[str]:
    """A Docker image with a repository in /testbed, made from `image`; nothing without one."""
    if not image:
        yield ""
        return
    recipe = f"""FROM {image}
LABEL sandboxrl.workdir=layer
RUN mkdir -p /testbed && printf 'def add(a, b):\\n    return a - b\\n' > /testbed/calc.py
"""
    subprocess.run(["docker", "build", "-q", "-t", REPOSITORY_IMAGE, "-"], input=recipe.encode(), check=True)
    try:
        yield REPOSITORY_IMAGE
    finally:
        subprocess.run(["docker", "rmi", REPOSITORY_IMAGE], check=False, stdout=subprocess.DEVNULL)


# ------------------------------------------------------------------------------------------------------------ the rows


def own_rows(image: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of our own for every benchmark, in the published schema."""
    number = "What is {i} and one?\nA. one\nB. two\nC. three\nD. four"
    said = json.dumps({"instruction_id_list": ["count:keyword"], "kwargs": [{"keyword": "the", "other": None}]})
    codes = [task for task in build("tiny", "heldout", 40, 0) if task.reward == "number"][:NUM_ROWS]
    make = [
        ("aime25", "aime25_{i}_00", "What is {i} + 40?", ["40", "41", "42", "43"]),
        ("ugphysics", "ugphysics_WaveOptics_0000{i}", "How many nanometres are 0.{i}5 micrometres?",
         [r"\boxed{50}", r"\boxed{150}", r"\boxed{250}", r"\boxed{350}"]),
        ("chembench", "chembench4k_Solvent_Prediction_0000{i}", number, list("ABCD")),
        ("medxpertqa", "medxpertqa_Text-{i}", number, list("ABCD")),
        ("ifbench", "ifbench_{i}_00", "Say something about number {i}.", [said] * NUM_ROWS),
    ]  # fmt: skip
    rows = {
        name: [
            {"id": ident.format(i=i), "problem_statement": question.format(i=i), "ground_truth": gold}
            for i, gold in enumerate(golds)
        ]
        for name, ident, question, golds in make
    }
    rows["ugphysics"][2]["problem_statement"] += " And so on." * 4000  # fits no context; in any selection
    rows["aa_lcr"] = [
        {
            "id": f"aa_lcr_{i}_00",
            "problem_statement": task.question,
            "ground_truth": task.gold,
            "input_files": json.dumps(task.documents),
        }
        for i, task in enumerate(codes)
    ]
    rows["swebench_verified"] = [
        {
            "instance_id": "own__calc-1",
            "repo": "own/calc",
            "problem_statement": FIX,
            "image": image,
            "eval_script": TEST,
            "FAIL_TO_PASS": ["t.py::test_add"],
            "PASS_TO_PASS": ["t.py::test_zero"],
        }
    ]
    return rows


REAL = {
    "chembench": "chembench/dev",
    "medxpertqa": "medxpertqa/medxpertqa_text_first60.jsonl",
    "ifbench": "ifbench/IFBench_first60.jsonl",
}
"""Where real rows lie below SANDBOXRL_REAL_DATA. (The five of SWE-bench want images of their own.)"""


def benchmark_words(out: Path, limit: int, max_tokens: int, image: str = "", ifbench: str = "") -> list[str]:
    """The part of the command line that names benchmarks, rows, prompt, limits and verifier."""
    root = Path(os.environ.get("SANDBOXRL_REAL_DATA", "/nowhere"))
    rows, verifier, arm = out / "rows", out / "verifier", out / "small.yaml"
    rows.mkdir()
    verifier.mkdir()
    (verifier / "instructions_registry.py").write_text(VERIFIER)
    arm.write_text(ARM)
    words = ["--benchmarks", ",".join(BENCHMARKS), "--mode", "both", "--arm", str(arm), "--limit", str(limit)]
    for name, own in own_rows(image).items():
        path = rows / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in own))
        real = root / REAL.get(name, "none")
        if real.exists() and (name != "ifbench" or ifbench):
            path = real
            verifier = Path(ifbench) if name == "ifbench" else verifier
        words += ["--data", f"{name}={path}"]
    words += [f"grader.ifbench={verifier}", "--judge", "scripted:judge", "--repeats", "1"]
    return [*words, "limits.max_turns=8", f"limits.max_tokens={max_tokens}"]


# ---------------------------------------------------------------------------------------------------------- our harness


def ours(out: Path, words: Sequence[str]) -> dict[str, Any]:
    """Evaluate, evaluate again, analyze."""
    folder = out / "results"
    started = time.monotonic()
    launch("evaluate", *words, "--out", str(folder))
    seconds = time.monotonic() - started
    names = ("results.jsonl", "failures.jsonl", "summary.json", "selection.json")
    before = {name: (folder / name).read_bytes() for name in names}
    launch("evaluate", *words, "--out", str(folder))
    changed = [name for name in names if (folder / name).read_bytes() != before[name]]
    launch("analyze", f"served={folder}", "--out", str(out / "tables"))
    summary: dict[str, dict[str, Any]] = json.loads(before["summary.json"])
    cells = {(name, mode): one for name, modes in summary.items() for mode, one in modes.items()}
    too_long = sum(one["num_too_long"] for (name, _), one in cells.items() if name == "ugphysics")
    wanted = {(name, mode) for name, one in BENCHMARKS.items() for mode in one.modes}
    found = {
        "served/benchmarks_and_modes": measure(len(cells), limit=len(wanted), at_least=1, goal="all"),
        "served/trajectories": measure(len(read_results(folder))),
        "served/lost": measure(sum(one["num_missing"] for one in cells.values()), at_most=0, goal="0"),
        "served/prompts_told_to_be_too_long": measure(too_long, at_least=2, at_most=2, goal="2, one in each mode"),
        "served/files_changed_by_a_second_run": measure(len(changed), at_most=0, goal="0"),
        "served/tables": measure(len(list((out / "tables").glob("*.csv"))), at_least=5, goal="at least 5"),
        "served/evaluation_s": measure(seconds),
    }
    return found | {f"served/score/{name}_{mode}": measure(one["score"]) for (name, mode), one in cells.items()}


def judged_by_itself(out: Path, url: str, model: str) -> dict[str, Any]:
    """The small model as its own judge: it says no verdict, so no trajectory that needs one may get a score."""
    rows = " ".join(f"--data {name}={out / 'rows' / name}.jsonl" for name in ("ugphysics", "aa_lcr"))
    words = f"{url} --model {model} --benchmarks ugphysics,aa_lcr --mode llm {rows} --limit 2 --repeats 1 --attempts 1"
    words += f" limits.max_tokens=1024 --judge {url} --judge-model {model} --out {out / 'judged'}"
    done = subprocess.run(
        [sys.executable, "-m", "sandboxrl.launch", "evaluate", *words.split()], cwd=ROOT, capture_output=True
    )
    results = read_results(out / "judged")
    lost = [json.loads(line) for line in (out / "judged" / "failures.jsonl").read_text().splitlines()]
    verdicts = len(list((out / "judged" / "judge").rglob("*.json")))
    scored = sum(1 for one in results if one.answer.strip())  # silence scores 0 without a judge
    return {
        "judged/trajectories": measure(len(results) + len(lost), limit=4, at_least=1, goal="all"),
        "judged/lost_for_want_of_a_verdict": measure(len(lost)),
        "judged/scored_without_a_verdict": measure(scored - verdicts, at_most=0, goal="0"),
        "judged/exit_code_tells_of_a_loss": measure(done.returncode == bool(lost), at_least=1, goal="1"),
    }


def one_prompt(out: Path, url: str, model: str) -> dict[str, Any]:
    """`sandboxrl run` live: the documents of a task as a person's files."""
    task = next(task for task in build("tiny", "heldout", 40, 0) if task.reward == "number")
    given, arm = out / "given", out / "prompt.yaml"
    given.mkdir()
    arm.write_text(PROMPT_ARM)
    for name, text in task.documents.items():
        (given / name).write_text(text)
    command = [sys.executable, "-m", "sandboxrl.launch", "run", "--prompt", task.question, "--input", str(given)]
    command += ["--output", str(out / "prompt"), "--endpoint", url, "--model", model, "--arm", str(arm)]
    done = subprocess.run([*command, "--max-turns", "8", "--temperature", "0"], cwd=ROOT, capture_output=True)
    (trajectory,) = read_results(out / "prompt" / "trajectory.jsonl")
    return {
        "run/exit_code": measure(done.returncode, at_most=0, goal="0"),
        "run/turns": measure(len(trajectory.turns), at_least=2, goal="at least 2"),
    }


def launch(*words: str) -> None:
    execute([sys.executable, "-m", "sandboxrl.launch", *words])


# ------------------------------------------------------------------------------------------------------ other harnesses


def lm_eval(out: Path, url: str, model: Path, python: str) -> dict[str, Any]:
    """Two tasks of our own under lm-eval: which first call the model finds likeliest (log-probabilities of
    `/v1/completions`), and the code it names when asked for it with the documents at hand (`/v1/chat/completions`)."""
    tasks = out / "lm_eval"
    tasks.mkdir()
    chat, arm = ChatFormat(load_tokenizer(model)), load_arm("compact")
    kept = [task for task in build("tiny", "heldout", 200, 0) if task.reward == "number"][:16]
    call = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
    choices = [
        call % ("bash", '{"command": "ls /testbed/documents"}'),
        call % ("bash", '{"command": "rm /testbed/documents"}'),
        call % ("finish", "{}"),
        "The answer is not known to me.",
    ]
    schemas = tool_set(arm.tool_set).schemas()
    prompts = [chat.decode(chat.prompt_ids(render(task, arm, "sandbox"), schemas)) for task in kept]
    rows = [{"prompt": text, "choices": choices, "gold": 0} for text in prompts]
    (tasks / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": render(task, load_arm("llm"), "llm")[0]["content"], "gold": task.gold} for task in kept[:4]]
    (tasks / "codes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{prompt}}", "target_delimiter": ""}
    call_task = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    code_task = {
        "output_type": "generate_until",
        "doc_to_target": "{{gold}}",
        "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 64, "temperature": 0},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    for name, fields in (("calls", call_task), ("codes", code_task)):
        files = {"data_files": {"test": str(tasks / f"{name}.jsonl")}}
        _write_yaml(tasks / f"{name}.yaml", {"task": f"own_{name}", **common, "dataset_kwargs": files, **fields})
    found = {}
    for name, kind, path, extra in (
        ("calls", "local-completions", "completions", f",tokenizer={model},tokenizer_backend=huggingface"),
        ("codes", "local-chat-completions", "chat/completions", ""),
    ):
        command = [python, "-m", "lm_eval", "--model", kind, "--include_path", str(tasks), "--tasks", f"own_{name}"]
        command += ["--model_args", f"model={model},base_url={url}/{path},num_concurrent=4{extra}"]
        command += ["--output_path", str(tasks / f"{name}_out"), "--log_samples"]
        execute([*command, "--apply_chat_template"] if name == "codes" else command)
        (saved,) = (tasks / f"{name}_out").rglob("results_*.json")
        results = json.loads(saved.read_text())["results"][f"own_{name}"]
        (samples,) = (tasks / f"{name}_out").rglob("samples_*.jsonl")
        answered = [line for line in samples.read_text().splitlines() if json.loads(line)["resps"][0][0]]
        expected = len(kept) if name == "calls" else 4
        found[f"lm_eval/{name}_answered"] = measure(len(answered), limit=expected, at_least=1, goal="all")
        score = results["acc,none" if name == "calls" else "exact_match,none"]
        found[f"lm_eval/{name}_score"] = measure(score)
    return found


def _write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(dict(value), sort_keys=False))


PEER = """
import os, sys
import llm_in_sandbox.benchmark.runner as runner
rows, out, url, image, model, mode = sys.argv[1:]
os.environ["OPENAI_API_KEY"] = "none"
config = runner.load_task_config("chem") | {"dataset": "json", "data_files": rows}
runner.load_task_config = lambda name: config
agent = dict(docker_image=image, llm_name="openai/" + model, llm_base_url=url, max_steps=4, temperature=1.0,
             max_token_limit=65536, max_tokens_per_call=256, max_response_len=256)
runner.run_benchmark("chem", agent, out, num_workers=2, mode=mode)
"""


def peer(out: Path, url: str, model: str, image: str, python: str) -> dict[str, Any]:
    """llm-in-sandbox's benchmark runner with our checkpoint, in both modes, then our tables from what it wrote."""
    folders = {"llm": out / "peer_vanillaLLM", "llm-in-sandbox": out / "peer_LLMinSandbox"}
    rows = out / "rows" / "chembench.jsonl"
    for mode, folder in folders.items():
        folder.mkdir()
        execute([python, "-c", PEER, str(rows), str(folder), url, image, model, mode])
    launch("analyze", "peer=" + "+".join(map(str, folders.values())), "--out", str(out / "peer_tables"))
    from sandboxrl.launch.analyze import load

    found = {}
    for mode, folder in folders.items():
        kept = load(folder)
        turns = sum(len(one.turns) for one in kept)
        name = "llm" if mode == "llm" else "sandbox"
        found[f"peer/{name}_trajectories_read"] = measure(len(kept), limit=NUM_ROWS, at_least=1, goal="all")
        found[f"peer/{name}_turns"] = measure(turns, at_least=1, goal="at least 1")
    return found


if __name__ == "__main__":
    main()
