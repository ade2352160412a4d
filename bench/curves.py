"""The quickstart's learning curves over seeds: one table, one SVG, and whether a person can rely on them.

    python -m bench.curves --seeds 101-110 --again 101-103:max_staleness=0 --out docs/quickstart
    python -m bench.curves --seeds 101-110 --out docs/quickstart --under 'nice -n 10' KEY=VALUE ...

Trains `recipes/tiny.yaml` once per seed, one run after the other, in `runs/curves-seedN`; `--again` trains some seeds
once more with another key. A finished run is not made again, and an interrupted one goes on. What it judges, on the
evaluation set:

    end      every run ends at 0.85 or more
    mean     the mean of the ends is 0.92 or more
    falls    no run ends more than 0.10 below its best after step 10

Exit code 1 where one of them does not hold.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import read_jsonl, write_whole

RECIPE = "recipes/tiny.yaml"
END, MEAN, FALL, SETTLED = 0.85, 0.92, 0.10, 10

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 400, 48, 24, 16, 40
COLOURS = ("#2458b8", "#c46a12", "#1f7a4d", "#8a3b8f", "#a8323a", "#0f7c8a", "#7a5c00", "#5b5bd6", "#b0357a", "#4a4a4a")

Curve = Sequence[tuple[int, float]]
"""(step, score) of every evaluation."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=seeds_of, required=True, help="for example 101-110 or 1,2,5")
    parser.add_argument("--again", action="append", default=[], metavar="SEEDS:KEY=VALUE", help="once more, with a key")
    parser.add_argument("--set", default="heldout", help="evaluation set")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--under", default="", metavar="COMMAND", help="runs each training, for example 'nice -n 10'")
    parser.add_argument("--out", type=Path, required=True, help="path without a suffix; .svg and .json are written")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="for every run")
    args = parser.parse_args()
    planned = {f"curves-seed{seed}": [f"seed={seed}", *args.keys] for seed in args.seeds}
    for words in args.again:
        seeds, _, key = words.partition(":")
        for seed in seeds_of(seeds):
            planned[f"curves-seed{seed}-{key.replace('=', '')}"] = [f"seed={seed}", *args.keys, key]
    for name, keys in planned.items():
        trained(args.runs / name, keys, shlex.split(args.under))
    curves = {name: curve(args.runs / name, args.set) for name in planned}
    for name, points in curves.items():
        print(f"| {name} | " + " | ".join(f"{score:.3f}" for _, score in points) + " |")
    once = {name: points for name, points in curves.items() if name.count("-") == 1}
    judged = {"seeds": judge(once)} | ({"again": judge(others(curves, once))} if args.again else {})
    print(json.dumps(judged, indent=1))
    content = {
        "command": shlex.join(["python", "-m", "bench.curves", *sys.argv[1:]]),
        "set": args.set,
        "judged": judged,
        "score_by_step": curves,
        "summaries": {name: json.loads((args.runs / name / "summary.json").read_text()) for name in planned},
    }
    write_whole(args.out.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    write_whole(args.out.with_suffix(".svg"), drawing(curves, args.set))
    return 0 if all(one["holds"] for one in judged["seeds"].values()) else 1


def seeds_of(text: str) -> list[int]:
    """`3-5,9` -> 3, 4, 5, 9."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def trained(run: Path, keys: Sequence[str], under: Sequence[str]) -> None:
    """Train to the end what is not there yet. Raises CalledProcessError."""
    summary = run / "summary.json"
    if summary.is_file() and json.loads(summary.read_text())["status"] == "finished":
        return
    words = [sys.executable, "-m", "sandboxrl.launch", "train", RECIPE, f"name={run.name}", f"out={run.parent}", *keys]
    print(shlex.join(words), flush=True)
    subprocess.run([*under, *words], check=True)


def curve(run: Path, name: str) -> Curve:
    key = f"eval/{name}/score"
    points = [(row["step"], row[key]) for row in read_jsonl(run / "metrics.jsonl") if key in row]
    if len(points) < 2:
        raise InputError(f"{run} was not evaluated on {name!r} twice")
    return points


def others(curves: Mapping[str, Curve], without: Mapping[str, Curve]) -> dict[str, Curve]:
    return {name: points for name, points in curves.items() if name not in without}


def judge(curves: Mapping[str, Curve]) -> dict[str, dict[str, Any]]:
    """What a person can rely on, and whether it holds; each with its worst value."""
    ends = [points[-1][1] for points in curves.values()]
    falls = [max(score for step, score in points if step >= SETTLED) - points[-1][1] for points in curves.values()]
    worst, mean, fall = min(ends), fmean(ends), max(falls)
    return {
        "end": {"lowest": round(worst, 4), "at_least": END, "holds": worst >= END},
        "mean": {"mean": round(mean, 4), "at_least": MEAN, "holds": mean >= MEAN},
        "falls": {"largest": round(fall, 4), "at_most": FALL, "holds": fall <= FALL},
    }


def drawing(curves: Mapping[str, Curve], name: str) -> str:
    """An SVG of score against step, both axes from zero; what was run again is dashed."""
    last = max(step for points in curves.values() for step, _ in points)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(score: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - score)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>score on {name} by step, {len(curves)} runs</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for score in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{LEFT} {y(score):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(score) + 4:.1f}" text-anchor="end" fill="#555">{score:g}</text>')
    for step in sorted({step for points in curves.values() for step, _ in points}):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 18}" text-anchor="middle" fill="#555">{step}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 3}" text-anchor="middle" fill="#555">step</text>')
    parts.append(f'<text x="{LEFT}" y="14" fill="#555">sampled score on {name}</text>')
    for at, (run, points) in enumerate(curves.items()):
        colour = COLOURS[at % len(COLOURS)]
        dashed = ' stroke-dasharray="5 4"' if run.count("-") > 1 else ""
        line = " ".join(f"{x(step):.1f},{y(score):.1f}" for step, score in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"{dashed}/>')
        step, score = points[-1]
        parts.append(f'<circle cx="{x(step):.1f}" cy="{y(score):.1f}" r="3" fill="{colour}"/>')
        column, row = divmod(at, 10)  # in the corner that no curve reaches
        label = run.removeprefix("curves-")
        left, top = x(last * 0.5) + 80 * column, y(0.5) + 14 * row
        parts.append(f'<text x="{left:.0f}" y="{top:.0f}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
