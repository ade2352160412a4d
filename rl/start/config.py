"""Starting policies: small models that this project makes itself, each once, kept in a folder named after all that
shapes it. `rl/start/make.py` makes them; nothing here needs torch.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import sandboxrl.data.builtin
import sandboxrl.rl.start.scripts
import sandboxrl.rl.start.tokenizer
from sandboxrl.data.errors import InputError, nearest
from sandboxrl.rl.start.scripts import ARM, TOOLS

START_PREFIX = "start:"


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
    threads: int = 1
    """Two save a little time on an idle machine and cost twice the time on a busy one."""


CONFIGS = {"tiny": StartConfig()}


def named_start(path: str, seed: int, root: Path) -> tuple[StartConfig, Path]:
    """The settings of the starting policy `start:NAME`, and its folder, which may not be there yet."""
    name = path.removeprefix(START_PREFIX)
    if name not in CONFIGS:
        raise InputError(f"model.path: unknown starting policy {path!r}{nearest(name, CONFIGS)}")
    config = replace(CONFIGS[name], seed=seed)
    return config, (root / f"{name}-{fingerprint(config)}").resolve()


def fingerprint(config: StartConfig) -> str:
    """Twelve hex digits of everything that shapes the model: settings, this program, its corpus, prompt and tools."""
    settings = json.dumps([asdict(config), ARM.digest, TOOLS.schemas()], sort_keys=True)
    modules = (sandboxrl.data.builtin, sandboxrl.rl.start.scripts, sandboxrl.rl.start.tokenizer)
    programs = [Path(__file__).with_name("make.py"), *(Path(str(module.__file__)) for module in modules)]
    digests = [hashlib.sha256(program.read_bytes()).hexdigest() for program in programs]
    return hashlib.sha256("\n".join([settings, *digests]).encode()).hexdigest()[:12]
