"""Writes a run folder like a real one, from a seed: what the tests of the report read and what a person looks at.

python tests/rl/reports/pages/sample_run.py FOLDER [--steps N] makes one to open in a browser.
"""

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

from sandboxrl.envs.trajectory import Observation, StopReason, Tokens, ToolCall, Trajectory, Turn

PROMPT = (
    "<|im_start|>system\nYou have a computer. Work in /testbed, write your answer to /testbed/answer.txt, "
    "then call finish.<|im_end|>\n<|im_start|>user\nThe documents are in /testbed/documents. {question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
QUESTIONS = (
    ("Which harbour did the Meridian leave last?", "Port Alder", "exact"),
    ("How many crates of salt are on the manifest?", "214", "number"),
    ("Which of A, B, C, D are true of the north mill?", "A, C", "choices"),
    ("In one sentence, why was the bridge closed?", "Flood water had undercut the second pier.", "rouge"),
)


def pieces(text: str) -> list[str]:
    """Cut text into token-like pieces whose concatenation is the text again."""
    out: list[str] = []
    while text:
        special = text.find("<|", 1) if not text.startswith("<|") else text.find("|>") + 2
        end = special if text.startswith("<|") and special > 1 else min(6, len(text))
        if not text.startswith("<|"):
            stops = [at for at in (text.find(" ", 1), text.find("\n", 1), special) if at > 0]
            end = min([end, *stops])
        out.append(text[:end])
        text = text[end:]
    return out


class Writer:
    """Builds one trajectory's parallel token lists as a rollout would."""

    def __init__(self, rng: random.Random, version: int, skill: float) -> None:
        self.rng, self.version, self.skill = rng, version, skill
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.text: list[str] = []

    def add(self, text: str, sampled: bool) -> int:
        for piece in pieces(text):
            self.ids.append(sum(piece.encode()) * 7919 % 151_669)
            self.text.append(piece)
            self.mask.append(int(sampled))
            self.versions.append(self.version if sampled else -1)
            self.logprobs.append(-self.rng.expovariate(1.5 + 6 * self.skill) if sampled else 0.0)
        return len(pieces(text))

    def turn(self, prose: str, name: str, arguments: dict[str, Any], answer: Observation) -> Turn:
        call = json.dumps({"name": name, "arguments": arguments})
        text = f"{prose}\n<tool_call>\n{call}\n</tool_call><|im_end|>"
        start = len(self.ids)
        num_sampled = self.add(text, True)
        end = len(self.ids)
        shown = (
            f"\n<|im_start|>user\n<tool_response>\n{answer.text}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        )
        num_environment = 0 if answer.finished else self.add(shown, False)
        return Turn(
            text=text,
            calls=(ToolCall(name, arguments, id=f"call_{start}"),),
            observations=(answer,),
            start=start,
            end=end,
            num_sampled=num_sampled,
            num_environment=num_environment,
            sample_s=num_sampled / 180,
            tool_s=answer.duration_s,
        )


def trajectory(rng: random.Random, task: int, step: int, skill: float) -> tuple[Trajectory, list[str]]:
    """One trajectory and its token texts. `skill` in [0, 1] makes success likelier."""
    question, gold, kind = QUESTIONS[task % len(QUESTIONS)]
    writer = Writer(rng, step - 1, skill)
    num_prompt = writer.add(PROMPT.format(question=question), False)
    listing = "harbour_log.txt\nledger_1911.txt\nletters/\nmanifest.csv\nweather.txt"
    found = f"documents/ledger_1911.txt:41: … {gold} …\ndocuments/weather.txt:7: wind NNW, 4 to 5, rain from noon"
    turns = [
        writer.turn("Let me look at what is there.", "bash", {"command": "ls documents"}, seen("bash", listing)),
        writer.turn(
            "Search every file for the words of the question.",
            "bash",
            {"command": "grep -rn -i 'pier\\|salt\\|Meridian' documents | head -20\nwc -l documents/*"},
            seen("bash", found, exit_code=0 if rng.random() < 0.8 else 1, duration_s=rng.uniform(0.02, 0.4)),
        ),
    ]
    good = rng.random() < 0.15 + 0.8 * skill
    stop = StopReason.FINISHED
    answer, score = "", 0.0
    if rng.random() < 0.35 * (1 - skill):
        stop = rng.choice([StopReason.MAX_TURNS, StopReason.MAX_TOKENS, StopReason.TIMEOUT])
        wrong = Observation("Unknown tool 'shell'; the tools are bash, file_editor, finish.", "shell", is_error=True)
        turns.append(writer.turn("Trying again.", "shell", {"cmd": "cat documents/*"}, wrong))
    else:
        answer = gold if good else rng.choice(["Port Elm", "17", "B", "I do not know."])
        score = 1.0 if good else (0.25 if kind in ("rouge", "choices") else 0.0)
        arguments = {"command": "create", "path": "/testbed/answer.txt", "file_text": answer + "\n"}
        turns.append(
            writer.turn("Write it down.", "file_editor", arguments, seen("file_editor", "Created answer.txt."))
        )
        turns.append(writer.turn("", "finish", {}, Observation("", "finish", finished=True)))
    made = Trajectory(
        task_id=f"builtin/easy/{kind}/{task:04d}",
        source="builtin",
        mode="sandbox",
        stop=stop,
        turns=tuple(turns),
        answer=answer,
        score=score,
        reward=score * stop.complete,
        tokens=Tokens(writer.ids, writer.mask, writer.logprobs, writer.versions),
        num_prompt=num_prompt,
        seed=rng.randrange(1 << 30),
        started_s=1_790_000_000.0 + step * 11,
        wall_s=sum(turn.sample_s + turn.tool_s for turn in turns),
    )
    return made, writer.text


def seen(name: str, text: str, exit_code: int = 0, duration_s: float = 0.03) -> Observation:
    return Observation(text, name, exit_code=exit_code, duration_s=duration_s)


def rows_of_step(rng: random.Random, step: int, skill: float, num_tasks: int, group_size: int) -> list[dict[str, Any]]:
    """What the trainer writes for one step, advantages leave-one-out."""
    rows = []
    for group in range(num_tasks):
        task = group if step == 1 or group < num_tasks // 2 else group + 10 * step
        made = [trajectory(rng, task, step, skill) for _ in range(group_size)]
        total = sum(one.reward or 0.0 for one, _ in made)
        for one, text in made:
            reward = one.reward or 0.0
            advantage = reward - (total - reward) / (group_size - 1)
            beside = {"step": step, "group": group, "advantage": advantage, "token_text": text, **asked(task)}
            if advantage:
                assert one.tokens
                sampled = [float(x) for x, m in zip(one.tokens.logprobs, one.tokens.mask, strict=True) if m]
                beside["learner_logprobs"] = [x + rng.gauss(0, 3e-5) for x in sampled]
            rows.append(one.to_dict() | beside)
    return rows


def evaluation_row(rng: random.Random, task: int, step: int, skill: float) -> dict[str, Any]:
    made, text = trajectory(rng, 5000 + task, step + 1, skill)
    return made.to_dict() | {"step": step, "token_text": text, **asked(5000 + task)}


def asked(task: int) -> dict[str, str]:
    question, gold, _ = QUESTIONS[task % len(QUESTIONS)]
    return {"question": question, "gold": gold}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics_of_step(rng: random.Random, step: int, rows: list[dict[str, Any]], skill: float) -> dict[str, Any]:
    rewards = [row["reward"] for row in rows]
    mean = sum(rewards) / len(rewards)
    row: dict[str, Any] = {
        "step": step,
        "reward/mean": mean,
        "reward/std": math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards)),
        "groups/informative": min(1.0, 0.55 + 0.4 * rng.random()),
        "turns/mean": sum(len(r["turns"]) for r in rows) / len(rows),
        "tokens/sampled": sum(sum(r["tokens"]["mask"]) for r in rows) / len(rows),
        "tokens/environment": sum(t["num_environment"] for r in rows for t in r["turns"]) / len(rows),
        "trajectories": len(rows),
        "dropped": int(step == 3),
        "staleness/max": 1 if step > 1 else 0,
        "mismatch/logprob_max": 10 ** rng.uniform(-5.2, -4.1),
        "mismatch/kl": 10 ** rng.uniform(-9, -8),
        "loss": rng.gauss(0, 0.02),
        "grad_norm": 0.4 + rng.random() * 0.3,
        "clip_fraction": 0.01 + rng.random() * 0.02,
        "time/rollout_s": 4.1 + rng.random(),
        "time/learn_s": 3.0 + rng.random() * 0.6,
        "time/sync_s": 0.12 + rng.random() * 0.05,
        "usage/external": 0.02 + 0.03 * rng.random(),
        "usage/files": 0.35 + 0.5 * skill,
        "usage/computation": 0.1 + 0.25 * skill + 0.05 * rng.random(),
    }
    row["time/step_s"] = row["time/rollout_s"] + row["time/learn_s"] * 0.3 + row["time/sync_s"]
    for stop in StopReason:
        if share := sum(r["stop"] is stop for r in rows) / len(rows):
            row[f"stop/{stop}"] = share
    return row


def write_sample_run(folder: Path, steps: int = 40, num_tasks: int = 8, group_size: int = 8, seed: int = 0) -> Path:
    """A finished run of `steps` steps in `folder`, with the trajectories of its ends and of each evaluation."""
    rng = random.Random(seed)
    (folder / "trajectories").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        f"name: {folder.name}\nseed: {seed}\nsteps: {steps}\nmodel:\n  path: runs/warm\n"
    )
    wall_s, evals = 41.0, {}
    with (folder / "metrics.jsonl").open("w") as metrics:
        for step in range(steps + 1):
            skill = 1 / (1 + math.exp(-(step - steps * 0.4) / (steps * 0.12)))
            if step:
                rows = rows_of_step(rng, step, skill, num_tasks, group_size)
                row = metrics_of_step(rng, step, rows, skill)
                wall_s += row["time/step_s"]
                metrics.write(json.dumps(row | {"time/wall_s": wall_s}) + "\n")
                if step in (1, steps):
                    write_rows(folder / "trajectories" / f"step_{step:06d}.jsonl", rows)
            if step % 10 == 0 or step == steps:
                rows = [evaluation_row(rng, task, step, skill) for task in range(2 * num_tasks)]
                score = sum(row["score"] for row in rows) / len(rows)
                evals[step] = {"heldout": score}
                metrics.write(json.dumps({"step": step, "eval/heldout/score": score, "time/wall_s": wall_s}) + "\n")
                write_rows(folder / "trajectories" / f"eval_heldout_{step:06d}.jsonl", rows)
    summary = {
        "status": "finished",
        "steps": steps,
        "eval_before": evals[0],
        "eval_after": evals[steps],
        "wall_s": wall_s,
        "trajectories": steps * num_tasks * group_size,
        "dropped": 1,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    print(write_sample_run(args.folder, args.steps))


if __name__ == "__main__":
    main()
