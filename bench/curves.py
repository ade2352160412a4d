"""The learning curves of finished runs: one table and one SVG, from their `metrics.jsonl`.

python -m bench.curves runs/tiny-seed0 runs/tiny-seed1 runs/tiny-seed2 --out docs/quickstart
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import read_jsonl, write_whole

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 360, 48, 24, 16, 40
COLOURS = ("#2458b8", "#c46a12", "#1f7a4d", "#8a3b8f", "#a8323a")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--set", default="heldout", help="evaluation set")
    parser.add_argument("--out", type=Path, required=True, help="path without a suffix; .svg and .json are written")
    args = parser.parse_args()
    found = {run.name: curve(run, args.set) for run in args.runs}
    for name, points in found.items():
        print(f"| {name} | " + " | ".join(f"{score:.3f}" for _, score in points) + " |")
    first, last = (fmean(points[end][1] for points in found.values()) for end in (0, -1))
    print(f"mean {first:.3f} -> {last:.3f}")
    summaries = {run.name: json.loads((run / "summary.json").read_text()) for run in args.runs}
    content = {"set": args.set, "score_by_step": found, "summaries": summaries}
    write_whole(args.out.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    write_whole(args.out.with_suffix(".svg"), drawing(found, args.set))


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    """(step, score) of every evaluation of a run."""
    key = f"eval/{name}/score"
    points = [(row["step"], row[key]) for row in read_jsonl(run / "metrics.jsonl") if key in row]
    if len(points) < 2:
        raise InputError(f"{run} was not evaluated on {name!r} twice")
    return points


def drawing(curves: dict[str, Sequence[tuple[int, float]]], name: str) -> str:
    """An SVG of score against step, both axes from zero."""
    last = max(step for points in curves.values() for step, _ in points)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(score: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - score)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for score in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{LEFT} {y(score):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(score) + 4:.1f}" text-anchor="end" fill="#555">{score:g}</text>')
    for step in sorted({step for points in curves.values() for step, _ in points}):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 18}" text-anchor="middle" fill="#555">{step}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 3}" text-anchor="middle" fill="#555">step</text>')
    parts.append(f'<text x="{LEFT}" y="14" fill="#555">sampled score on {name}</text>')
    for (run, points), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        line = " ".join(f"{x(step):.1f},{y(score):.1f}" for step, score in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        step, score = points[-1]
        parts.append(f'<circle cx="{x(step):.1f}" cy="{y(score):.1f}" r="3" fill="{colour}"/>')
        offset = 24 + 16 * list(curves).index(run)
        parts.append(f'<text x="{LEFT + 12}" y="{TOP + offset}" fill="{colour}">{run}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
