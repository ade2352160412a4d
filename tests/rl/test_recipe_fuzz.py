"""A recipe with any change is a recipe, or one clear line."""

import random
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.rl.config import load_recipe

ROOT = Path(__file__).resolve().parents[2]
JUNK = ["", "null", "[]", "{}", "-1", "1e999", ".nan", "'", '"', ":", "- ", "\t", "&a", "*a", "!!python/object:os.system", "${oc.env:HOME}", "${seed}", "${a", "\x00", "ü", "99999999999999999999", "extends: x.yaml\n"]  # fmt: skip # noqa: E501


def changed(rng: random.Random, text: str) -> str:
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(text))
        text = text[:start] + rng.choice(JUNK) + text[start + rng.randrange(6) :]
    return text


def test_a_recipe_with_any_change_is_read_or_refused(tmp_path: Path) -> None:
    rng, num_refused = random.Random(0), 0
    recipes = [path.read_text() for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    file = tmp_path / "fuzzed.yaml"
    for _ in range(150):
        file.write_bytes(changed(rng, rng.choice(recipes)).encode("utf-8", "surrogatepass"))
        try:
            load_recipe(file)
        except InputError as error:
            num_refused += 1
            assert "\n" not in str(error), str(error)
    assert num_refused > 30
