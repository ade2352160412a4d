"""Files and folders that no command can use: damaged, foreign, of the wrong kind, or not there."""

import json
import os
from pathlib import Path


def make_files(root: Path) -> list[str]:
    """Make them below `root`, and return their paths as a person in `root` would type them."""
    (root / "target" / "old").mkdir(parents=True)
    (root / "target" / "old" / "file").write_text("mine\n")
    contents: dict[str, bytes] = {
        "empty": b"",
        "binary": bytes(range(256)) * 20,
        "list.json": b"[1, 2, 3]",
        "deep.json": b"[" * 100_000,
        "half.jsonl": b'{"task_id": "a"}\n{"task_id": ',
        "foreign.jsonl": b'{"a": 1}\n{"b": [null]}\n',
        "types.jsonl": b'{"task_id": 3, "turns": "x", "tokens": [], "stop": {}}\n',
        "rows.csv": b"question,answer\nwhat,\n",
        "text.yaml": b"only a text",
        "twice.yaml": b"steps: 1\nsteps: 2\n",
        "object.yaml": b"steps: !!python/object/apply:os.system [true]\n",
        "anchors.yaml": b"a: &a [x, x]\nb: &b [*a, *a]\nself: &s [*s]\n",
        "own.yaml": b"extends: own.yaml\n",
        "tab.yaml": b"steps:\t- {\n",
        "latin.yaml": "name: \u00fc\n".encode("latin-1"),
        "missing.yaml": b"extends: nowhere.yaml\n",
        "sweep.yaml": b"recipe: good.yaml\nseeds: [1, 1]\n",
        "sweep2.yaml": b"recipe: good.yaml\naxes: {seed: [1]}\n",
        "sweep3.yaml": b"recipe: good.yaml\narms: {a: {name: b}, c: 3}\n",
        "sweep4.yaml": b"recipe: good.yaml\nevaluate: --nope\n",
        "sweep5.yaml": b"recipe: [x]\nparallel: many\n",
        "broken.py": b"def f(:\n",
        "raises.py": b"raise RuntimeError('no')\n",
        "config.json": b"{}",
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)
    (root / "good.yaml").write_text("extends: nowhere.yaml\n")
    for name, files in {
        "run": {"recipe.yaml": "extends: tiny\n", "metrics.jsonl": "not json\n"},
        "run2": {"recipe.yaml": "steps: 1\nname: run2\n", "summary.json": "[1", "metrics.jsonl": '{"step": "x"}\n'},
        "run3": {"recipe.yaml": "steps: 1\nname: run3\n", "summary.json": '{"status": 3}', "checkpoints": ""},
        "model": {"config.json": "[]", "tokenizer.json": "{", "tokenizer_config.json": "x"},
        "model2": {"config.json": '{"max_position_embeddings": "x"}', "tokenizer_config.json": "{}"},
        "results": {"results.jsonl": '{"a": 1}\n', "settings.json": "[]", "selection.json": "{", "summary.json": "x"},
        "trajectories": {"a.jsonl": "x\n", "trajectory.json": "{}"},
    }.items():
        for file, text in files.items():
            (root / name).mkdir(exist_ok=True)
            (root / name / file).write_text(text)
    (root / "run2" / "checkpoints" / "step_000001").mkdir(parents=True)
    (root / "run2" / "checkpoints" / "step_000001" / "trainer.json").write_text(json.dumps({"step": 2}))
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nowhere/at/all")
    os.mkfifo(root / "pipe")
    made = sorted(path.name for path in root.iterdir() if path.name != "target")
    return [
        *made, "nowhere", "nowhere/deep", "run/recipe.yaml", "empty/below", "x" * 300, "/dev/null", "/dev/null/x",
        "/proc/self/mem", "/proc/nothing", "", " ", "-", "a\tb", "\u65e5\u672c", "dangling/x", "loop/x", "~",
        "~nobody/x",
    ]  # fmt: skip
