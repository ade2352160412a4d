"""Starting policies: small models that this project makes itself. `start:tiny` ships with the package, any other is
made once by `rl/start/make.py`; both are kept under the runs, in a folder named by what made them. Nothing here needs
torch.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.files import digest

START_PREFIX = "start:"
SHIPPED = Path(__file__).parent
"""Here lies the folder `NAME` of each starting policy, as its default settings made it."""


@dataclass(frozen=True)
class StartConfig:
    """How a starting policy is made. Any change makes another model."""

    seed: int = 0
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 3
    num_heads: int = 4
    head_dim: int = 32
    num_tasks: int = 2000
    """Training tasks played once well (for copying) and once with flaws (for acting)."""
    flawed: float = 0.68
    """Share of the trajectories for acting that are flawed on purpose."""
    copy_steps: int = 200
    copy_batch: int = 48
    act_steps: int = 320
    act_batch: int = 16
    template_weight: float = 0.2
    """Weight of a token that is not copied, in a window."""
    copied_weight: float = 5.0
    """Weight of a copied token in a whole trajectory."""
    matrix_lr: float = 0.02
    """Muon, for the matrices of the layers."""
    other_lr: float = 3e-3
    """AdamW, for the embedding and the norms."""
    act_lr_scale: float = 0.5


CONFIGS = {"tiny": StartConfig()}


def named_start(path: str) -> tuple[str, StartConfig]:
    """Name and settings of the starting policy `start:NAME` or `start:NAME@SEED`. Raises InputError."""
    name, at, seed = path.removeprefix(START_PREFIX).partition("@")
    if name not in CONFIGS:
        raise InputError(f"model.path: unknown starting policy {path!r}{nearest(name, CONFIGS)}")
    if at and not re.fullmatch(r"0|[1-9][0-9]{0,8}", seed):
        raise InputError(f"model.path: {path!r}: after the @ comes a seed, for example start:{name}@7")
    return name, replace(CONFIGS[name], seed=int(seed)) if at else CONFIGS[name]


def start_folder(path: str, root: Path) -> Path:
    """Where the starting policy `path` is under `root`: a copy of the shipped one, which is put there now, or one that
    is made there and may not be there yet.

    The shipped one is copied because a run outlives the installation that it began with: an upgrade would change its
    model, and a Ray job's working directory is removed behind it. Raises InputError.
    """
    name, config = named_start(path)
    if config != CONFIGS[name]:
        return (root / f"{name}@{config.seed}-{fingerprint(config)}").resolve()
    shipped = SHIPPED / name
    files = sorted(file for file in shipped.iterdir() if file.is_file())
    content = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()
    folder = (root / f"{name}-{content[:12]}").resolve()
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=_made(root)) as partial:
            shutil.copytree(shipped, made := Path(partial) / name)
            appear(made, folder)
    return folder


def fingerprint(config: StartConfig) -> str:
    """Twelve hex digits of what shapes the model: its settings, and text of the very kind that it is taught, in which
    any change of the corpus, the prompt, the tools or the chat template shows."""
    from sandboxrl.rl.start.tokenizer import taught_texts  # transformers, which the shipped one does not need

    return digest(json.dumps(asdict(config), sort_keys=True), *taught_texts(config.seed, 8))[:12]


def appear(made: Path, folder: Path) -> None:
    """Give a complete folder its name. Another process may have made the same meanwhile: theirs stays."""
    try:
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():
            raise


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
