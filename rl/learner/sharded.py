"""Reading a sharded checkpoint without running anything that is in it.

torch keeps the plan of a checkpoint (`.metadata`) as a pickle, and unpickles it without limits: a file could run
commands when it is read. Here only the classes that a plan is made of are let in, values other than tensors are read
with `weights_only`, and a plan that points out of its folder is refused.
"""

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.planner import ReadItem

from sandboxrl.data.errors import InputError, described

PLAN = ".metadata"
CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float64", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"},
    "pathlib": {"PosixPath"},
}
"""What a plan may name."""


def read_sharded(state: dict[str, Any], folder: Path) -> None:
    """Fill `state`, whose tensors may be sharded over any number of ranks (then a collective), with what was saved.
    Raises InputError for a plan that names anything else than tensors of its own folder."""
    _plan(folder)  # every rank for itself: an error inside a collective has another form
    try:
        dcp.load(state, storage_reader=_Reader(folder), planner=_Planner())
    except CheckpointException as error:  # no Exception to Python: nobody above would catch it
        reason, _ = next(iter(error.failures.values()))
        raise InputError(f"{folder} cannot be read: {described(reason)}") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _plan(folder: Path) -> Any:
    file = folder / PLAN
    try:
        with file.open("rb") as stream:
            plan = _Unpickler(stream).load()
        paths = [PurePosixPath(info.relative_path) for info in plan.storage_data.values()]
        if any(len(path.parts) != 1 or path.name in ("..", PLAN) for path in paths):
            raise ValueError("it points out of its folder")
        plan.storage_meta.load_id = ""
    except Exception as error:  # a pickle that is damaged, or made to harm, raises whatever it likes
        raise InputError(f"{file} is no plan of a checkpoint: {error}") from None
    return plan


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        plan = _plan(Path(self.path))
        plan.storage_meta.load_id = self.load_id
        return plan


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        safe = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), safe)
        safe.seek(0)
        super().load_bytes(read_item, safe)
