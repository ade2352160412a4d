"""Rows of a published data set: a local copy, or the Hugging Face Hub at one commit, through the `datasets` library.

    Origin(dataset="ada/rows", revision="main").pinned(commits).rows(rejected) -> iterator of (where, row)

`path` is a local copy in any form that `data.reading` knows, or a folder made by `save_to_disk`. `dataset` is a name on
the Hub, or a folder in the Hub's own layout (a clone, a downloaded snapshot), of which `config` and `split` choose a
part. A revision that is not a commit moves: `pinned` asks the Hub once which commit it is, and notes it in `commits`,
so that a run that goes on reads the rows it began with.
"""

import contextlib
import http.client
import re
import urllib.request
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandboxrl.data.errors import InputError, one_line
from sandboxrl.data.reading import Rejected, Row, read_rows

Rows = Iterator[tuple[str, Row]]

PINNED = {
    "BytedTsinghua-SIA/DAPO-Math-17k": "65877096c24ffa7abc4e4fa5edb95cf3413a5674",
    "R2E-Gym/R2E-Gym-Subset": "2e8108ff942f24fcb5686badfaf7f9a8808566d5",
    "princeton-nlp/SWE-bench_Verified": "c104f840cc67f8b6eec6f759ebc8b2693d585d4a",
}
"""Data set -> the commit that is read where no revision is given. These are the ones that public code pins; of the
others none is known, so `main` is looked up."""
MOVING = "main"
WHERE = ("path", "dataset", "config", "split", "revision", "streaming")
"""The options of a source that say where its rows are."""


@dataclass(frozen=True)
class Origin:
    path: str = ""
    """A local copy: a file of rows or a folder of such; empty: `dataset`."""
    dataset: str = ""
    """A data set of the Hub, or a folder in its layout."""
    config: str = ""
    split: str = "train"
    revision: str = ""
    """A commit, or a name that is looked up; empty: that of PINNED, else `main`."""
    streaming: bool = False
    """Read while it is downloaded, and keep nothing on the disk."""

    @property
    def local(self) -> bool:
        return bool(self.path) or Path(self.dataset).is_dir()

    @property
    def asked(self) -> str:
        """What is read, as a person asked for it: `NAME@REVISION` of the Hub, else the path."""
        return self.path or (
            self.dataset if self.local else f"{self.dataset}@{self.revision or PINNED.get(self.dataset, MOVING)}"
        )

    @property
    def is_pinned(self) -> bool:
        return self.local or bool(re.fullmatch("[0-9a-f]{40}", self.asked.rpartition("@")[2]))

    def check(self, given: set[str]) -> None:
        """Raises InputError for an option among `given` that nothing would read."""
        if not self.path and not self.dataset:
            raise InputError("neither path nor dataset says where the rows are")
        useless = {"revision", "streaming"} if self.local else set()
        if self.path:
            useless |= {"dataset", "config"}
            useless |= set() if (Path(self.path) / "dataset_dict.json").is_file() else {"split"}
        if found := sorted(useless & given):
            raise InputError(f"{', '.join(found)} has no effect on a local copy ({self.path or self.dataset})")

    def pinned(self, commits: MutableMapping[str, str]) -> "Origin":
        """The same at a commit. `commits` holds those that are known, by `asked`, and gets what is looked up."""
        if self.local:
            return self
        if self.asked not in commits:
            name, _, revision = self.asked.rpartition("@")
            commits[self.asked] = revision if self.is_pinned else _look_up(name, revision)
        return replace(self, revision=commits[self.asked])

    def rows(self, rejected: list[Rejected]) -> Rows:
        """Every row and where it stands. Raises InputError."""
        saved = Path(self.path)
        if self.path and (saved / "dataset_dict.json").is_file():
            saved /= self.split
        if self.path and not (saved / "state.json").is_file():
            yield from read_rows(saved, rejected)
            return
        with _library(self.asked):
            table = iter(_saved(saved) if self.path else self._published())
        name = str(saved) if self.path else self.asked + (f"/{self.config}" if self.config else "")
        number = 0
        while True:
            with _library(f"{name}, after row {number}"):
                row = next(table, None)
            if row is None:
                return
            number += 1
            yield f"{name}:{number}", row

    def _published(self) -> Any:
        import datasets

        if not self.local:
            check_answers()
        revision = None if self.local else self.revision
        builder = datasets.load_dataset_builder(self.dataset, self.config or None, revision=revision)
        if revision and builder.hash != revision:
            # without a connection the library takes whatever version it has kept, and only logs that
            raise InputError(
                f"the Hub does not answer, and what is kept of {self.dataset} on this machine is another commit than "
                f"{revision}; give path=, a local copy"
            )
        if self.streaming or self.local:  # of a folder the library would keep a copy by its name, whatever is in it now
            return builder.as_streaming_dataset(split=self.split)
        builder.download_and_prepare()
        return builder.as_dataset(split=self.split)


def _saved(folder: Path) -> Any:
    import datasets

    return datasets.load_from_disk(str(folder))


def _look_up(dataset: str, revision: str) -> str:
    from huggingface_hub import HfApi

    with _library(f"{dataset}@{revision}"):
        check_answers()
        return str(HfApi().dataset_info(dataset, revision=revision).sha)


def check_answers() -> None:
    """Raises InputError where the Hub takes connections and says nothing: the libraries would ask again and again for
    many minutes. One that refuses them is left to them, which then read what they have kept."""
    from huggingface_hub import constants

    limit_s = constants.HF_HUB_ETAG_TIMEOUT  # the libraries' own, an environment variable of this name
    if constants.HF_HUB_OFFLINE:
        return
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=limit_s).close()
    except (OSError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", error), TimeoutError):
            raise InputError(
                f"the Hub at {constants.ENDPOINT} has not answered within {limit_s:g} s (HF_HUB_ETAG_TIMEOUT); "
                "HF_HUB_OFFLINE=1 takes what is kept on this machine"
            ) from None


@contextlib.contextmanager
def _library(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the library raises whatever its transports and readers raise
        hint = "; without a network give revision=, a commit that was loaded here before, or path=, a local copy"
        raise InputError(f"{what} cannot be loaded: {one_line(error)}{hint if '@' in what else ''}") from None
