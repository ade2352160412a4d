"""A model as the command line names it (a folder, an endpoint or a script) as policies that are closed afterwards."""

import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from sandboxrl.data.errors import InputError
from sandboxrl.data.plugin import digest, is_own
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.rehearsal import rehearsed
from sandboxrl.envs.policy.own import load_policy
from sandboxrl.envs.policy.protocol import Policy, Sampling
from sandboxrl.rl.engine.config import EngineConfig

PAPER_SAMPLING = {
    "claude": Sampling(temperature=1.0),
    "gpt-5": Sampling(temperature=1.0),
    "deepseek-v3": Sampling(temperature=1.0, top_p=0.95),
    "minimax-m2": Sampling(temperature=1.0, top_p=0.95, top_k=40),
    "kimi-k2": Sampling(temperature=1.0),
    "qwen3-coder": Sampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05),
    "qwen3": Sampling(temperature=0.7, top_p=0.8, top_k=20),
}
"""The paper's Table 13, by a part of the model's name; the first that fits."""
_END_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how it is asked."""

    where: str
    """A Hugging Face folder, the URL of an OpenAI-compatible server, `scripted:NAME` or `my_agent.py:agent`."""
    name: str = ""
    """The server's name for the model (endpoints only)."""
    sampling: Sampling = field(default_factory=Sampling)
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key. The key itself is never kept."""
    workers: int = 1
    """Engines (folders only)."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """How each engine runs (folders only); the longest conversation is the model's own limit if that is smaller."""

    @property
    def is_endpoint(self) -> bool:
        return self.where.startswith(("http://", "https://"))

    @property
    def is_own(self) -> bool:
        """A policy of the user's own code."""
        return is_own(self.where) and not self.where.startswith("scripted:")

    @property
    def public_name(self) -> str:
        """What may be written down: no user name or password of a URL."""
        if self.is_endpoint:
            parts = urlsplit(self.where)
            return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        return self.where.rstrip("/")

    def digest(self) -> str:
        """Of a folder's configuration and weights (both ends of every file), so that results of a model that has
        changed in its place are told apart; of the code of a user's own policy; empty for what cannot be looked at."""
        if self.is_own:
            return digest(self.where, "policy")
        found = hashlib.sha256()
        kinds = (".json", ".safetensors", ".jinja")
        folder = Path(self.where)
        files = [file for file in sorted(folder.iterdir()) if file.suffix in kinds] if folder.is_dir() else []
        for file in files:
            with file.open("rb") as handle:
                size = handle.seek(0, os.SEEK_END)
                found.update(f"{file.name} {size}".encode())
                for start in (0, max(0, size - _END_BYTES)):
                    handle.seek(start)
                    found.update(handle.read(_END_BYTES))
        return found.hexdigest()[:16] if files else ""


def paper_sampling(where: str, name: str) -> Sampling:
    """The paper's sampling for this model; neutral sampling for one that is not in its table."""
    known = f"{name} {Path(where).name}".lower()
    return next((sampling for part, sampling in PAPER_SAMPLING.items() if part in known), Sampling())


@asynccontextmanager
async def open_policies(spec: ModelSpec, tasks: Iterable[Task] = ()) -> AsyncIterator[list[Policy]]:
    """One policy, or one for each engine of a folder. `tasks` are what a scripted policy may know the answers of.
    Raises InputError."""
    if spec.where.startswith("scripted:"):
        yield [rehearsed(spec.where.removeprefix("scripted:"), tasks)]
    elif spec.is_own:
        yield [load_policy(spec.where)]
    elif spec.is_endpoint:
        from sandboxrl.envs.policy.endpoint import EndpointPolicy

        if not spec.name:
            raise InputError(f"{spec.where}: name the model as that server knows it (--model NAME)")
        policy = EndpointPolicy(spec.where, spec.name, spec.sampling, key_variable=spec.key_variable)
        try:
            await policy.check()
            yield [policy]
        finally:
            await policy.close()
    elif Path(spec.where).is_dir():
        from sandboxrl.rl.evaluation.local_model import local_policies  # heavy: Ray, tokenizers

        async with local_policies(spec.where, spec.workers, spec.engine, spec.sampling) as policies:
            yield policies
    else:
        raise InputError(
            f"{spec.where}: neither a model folder, nor the URL of a server, nor scripted:NAME, nor file.py:policy"
        )
