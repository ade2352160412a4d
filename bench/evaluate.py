"""How fast the evaluation harness itself is, with a model that answers at once.

    python -m bench.evaluate [--quick] [--image IMAGE] [--peer-python PYTHON] --out FILE.json

| measure | ours | peer |
|---|---|---|
| `evaluate/docker_per_min` | trajectories per minute, docker sandboxes | llm-in-sandbox 0.2.0's benchmark runner |
| `evaluate/bubblewrap_per_min` | the same with bubblewrap | the same |
| `evaluate/llm_per_min` | LLM mode, no sandbox | the same in its LLM mode |
| `evaluate/resume_s` | a second run of a finished evaluation | |

Ours and the peer get the same rows, image, number of workers and server. The server is a process of its own
that answers every request at once: one command that writes the answer, then the call that ends the work. The peer runs
in its own environment (PYTHON of a virtual environment with llm-in-sandbox 0.2.0, and mcp, which newer releases of its
litellm import); without it there is no ratio. Rates are counted from the first trajectory's start to the last one's
end, for the peer by its own clock, so the start of either program is left out.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.report import measure, write_report
from sandboxrl.rl.evaluation.evaluate import read_results
from sandboxrl.rl.reports.analysis import busy_s

WORKERS = 8
ANSWER = "B"

PEER = """
import json, os, sys, time
import llm_in_sandbox.benchmark.runner as runner
rows, out, url, image, workers, mode = sys.argv[1:]
os.environ["OPENAI_API_KEY"] = "none"
config = runner.load_task_config("chem") | {"dataset": "json", "data_files": rows}
runner.load_task_config = lambda name: config
agent = dict(docker_image=image, llm_name="openai/instant", llm_base_url=url, max_steps=10, temperature=1.0,
             max_token_limit=65536, max_tokens_per_call=65536, max_response_len=65536)
runner.run_benchmark("chem", agent, out, num_workers=int(workers), mode=mode)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="fewer rows: under five minutes")
    parser.add_argument("--image", default="", help="docker image for ours and the peer; empty: no docker measure")
    parser.add_argument("--peer-python", default="", help="python of an environment with llm-in-sandbox 0.2.0")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve())
        return
    if args.out is None:
        parser.error("--out is needed")
    write_report(args.out, run(args))


def run(args: argparse.Namespace) -> dict[str, Any]:
    num_rows = 48 if args.quick else 128
    with tempfile.TemporaryDirectory(prefix="sandboxrl-bench-") as folder:
        root = Path(folder)
        rows = root / "rows.jsonl"
        rows.write_text("".join(json.dumps(row(i)) + "\n" for i in range(num_rows)))
        server = subprocess.Popen(
            [sys.executable, "-m", "bench.evaluate", "--serve"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            return measures(args, root, rows, url, num_rows)
        finally:
            server.kill()
            server.wait()


def measures(args: argparse.Namespace, root: Path, rows: Path, url: str, num_rows: int) -> dict[str, Any]:
    goal = "at least 10 times llm-in-sandbox 0.2.0"
    found: dict[str, Any] = {}
    peer = None
    if args.image:
        if args.peer_python:
            peer = per_minute(num_rows, peer_run(args, root / "peer", rows, url, "llm-in-sandbox"))
        ours = per_minute(num_rows, our_run(root / "docker", rows, url, "sandbox", args.image))
        found["evaluate/docker_per_min"] = measure(ours, peer=peer, at_least=10 if peer else None, goal=goal)
    ours = per_minute(num_rows, our_run(root / "bubblewrap", rows, url, "sandbox"))
    found["evaluate/bubblewrap_per_min"] = measure(ours, peer=peer, at_least=10 if peer else None, goal=goal)
    peer = None
    if args.peer_python:
        peer = per_minute(num_rows, peer_run(args, root / "peer_llm", rows, url, "llm"))
    ours = per_minute(num_rows, our_run(root / "llm", rows, url, "llm"))
    found["evaluate/llm_per_min"] = measure(ours, peer=peer)
    started = time.monotonic()
    our_run(root / "llm", rows, url, "llm")
    found["evaluate/resume_s"] = measure(time.monotonic() - started, at_most=5, goal="at most 5 s")
    return found


def row(number: int) -> dict[str, Any]:
    question = f"Which letter is right in question {number}?\nA. one\nB. two\nC. three\nD. four"
    return {
        "id": f"chembench4k_Bench_{number:05d}",
        "domain": "chem",
        "problem_statement": question,
        "ground_truth": ANSWER,
        "input_files": json.dumps({"notes.txt": "The answer is written nowhere.\n" * 50}),
    }


Outcome = tuple[list[float], float]
"""The scores, and the seconds from the first trajectory's start to the last one's end."""


def per_minute(num_rows: int, outcome: Outcome) -> float:
    scores, seconds = outcome
    if scores != [1.0] * num_rows:
        raise SystemExit(f"a run that should have scored 1 on all {num_rows} rows did not: {scores[:5]} ...")
    return 60 * num_rows / seconds


def our_run(out: Path, rows: Path, url: str, mode: str, image: str = "") -> Outcome:
    words = f"evaluate {url} --model instant --benchmarks chembench --data chembench={rows} --mode {mode}"
    words += f" --repeats 1 --parallel {WORKERS} --arm reference --out {out}"
    if image:
        words += f" sandbox.backend=docker sandbox.image={image}"
    execute([sys.executable, "-m", "sandboxrl.launch", *words.split()])
    done = read_results(out)
    return [one.score or 0.0 for one in done], busy_s(done)


def peer_run(args: argparse.Namespace, out: Path, rows: Path, url: str, mode: str) -> Outcome:
    out.mkdir()
    image = args.image or "none"
    execute([args.peer_python, "-c", PEER, str(rows), str(out), url, image, str(WORKERS), mode])
    scores = [row["reward"] for row in json.loads((out / "trajectory.json").read_text()).values()]
    return scores, json.loads((out / "results.json").read_text())["elapsed_time_seconds"]


def execute(command: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or the peer waits for a file from the internet
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[:3]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


# ----------------------------------------------------------------------------------------------------------- the server


async def serve() -> None:
    """Answers chat completions at once; prints its port."""
    server = await asyncio.start_server(answer_requests, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def answer_requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            length = 0
            while (header := await reader.readline()).strip():
                name, _, value = header.decode().partition(":")
                length = int(value) if name.lower() == "content-length" else length
            body = json.loads(await reader.readexactly(length) or b"{}")
            value = completion(body) if line.startswith(b"POST") else {"data": [{"id": "instant"}]}
            data = json.dumps(value).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            writer.write(head.encode() + data)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client is done
    finally:
        writer.close()


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """Without tools the answer; with tools one command that writes it, then the call that ends the work."""
    names = [tool["function"]["name"] for tool in body.get("tools", [])]
    message: dict[str, Any] = {"role": "assistant", "content": "" if names else f"Answer: {ANSWER}"}
    if names:
        written = any(one["role"] == "assistant" for one in body["messages"])
        shell = next(name for name in names if "bash" in name)
        finish = next(name for name in names if name in ("submit", "finish"))
        command = {"command": f"printf {ANSWER} > /testbed/answer.txt"}
        function = {"name": finish if written else shell, "arguments": json.dumps({} if written else command)}
        message["tool_calls"] = [{"id": f"call_{len(body['messages'])}", "type": "function", "function": function}]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if names else "stop"}
    usage = {"prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "instant",
        "choices": [choice],
        "usage": usage,
    }


if __name__ == "__main__":
    main()
