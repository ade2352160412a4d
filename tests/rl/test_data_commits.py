"""What a run needs from outside: the commits of its data sets are noted, and kept when it goes on."""

import json
import subprocess
import sys
from pathlib import Path

from tests.rl.tiny import byte_tokenizer, save, tiny_model

ROOT = Path(__file__).resolve().parents[2]
PREPARE = """
import json, os, sys
from pathlib import Path
from tests.data.hub import Hub
root = Path(sys.argv[1])
with Hub(root) as hub:
    os.environ |= {"HF_HOME": str(root / "home"), "HF_ENDPOINT": hub.url}  # before the libraries read them
    from tests.data.test_hub import A, B, publish
    publish(root / "ada/rows" / A, "first")
    publish(root / "ada/rows" / B, "second")
    from sandboxrl.rl.config import load_recipe
    from sandboxrl.rl.run import COMMITS_FILE, prepare
    recipe = load_recipe("recipes/tiny.yaml", sys.argv[2:])
    for moved in (A, B):
        hub.main["ada/rows"] = moved
        inputs = prepare(recipe)
        assert inputs.commits == {"ada/rows@main": A}
        print(json.dumps([sorted({next(inputs.train).id for _ in range(20)})]))
        recipe.run_dir.mkdir(exist_ok=True, parents=True)
        (recipe.run_dir / COMMITS_FILE).write_text(json.dumps(inputs.commits))
"""


def test_a_run_that_goes_on_reads_the_rows_it_began_with(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(model)
    save(tiny_model(vocabulary=len(tokenizer)), model)
    words = [f"out={tmp_path}", "name=run", f"model.path={model}", "mode=llm", "prompt=llm", "limits.max_turns=1"]
    words += [
        "tasks.max_prompt_tokens=6000",
        "limits.max_tokens=8000",
        "engine.max_model_len=8000",
        "learner.max_tokens_per_row=8000",
    ]
    words += ["tasks.train={rows: {source: general, dataset: ada/rows}}"]
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(tmp_path), *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    assert [json.loads(line) for line in said] == [[[f"first-{i}" for i in range(5)]]] * 2
