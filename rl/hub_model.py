"""A model of the Hugging Face hub, at one commit, on every node that reads it.

    folder = fetched("Qwen/Qwen3-4B-Instruct-2507")     on the driver: looked up, the folder's name is its commit
    model = portable(folder)                             "hub:Qwen/Qwen3-4B-Instruct-2507@<commit>"
    local_folder(model)                                  on any node: the folder there, fetched where it is not

A folder of your own has the same path on every node, on a file system that they share.
"""

import re

from sandboxrl.data.errors import InputError, one_line
from sandboxrl.data.hub import check_answers

PREFIX = "hub:"
LIGHT_FILES = ("*.json", "*.txt", "*.jinja")
"""All of a model but its weights: who only counts tokens, or gets the weights from another rank, needs no more."""


def fetched(name: str, weights: bool = True, commit: str | None = None) -> str:
    """The folder of a model of the hub on this machine. Raises InputError: one line that says why it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    check_answers()
    try:
        patterns = None if weights else list(LIGHT_FILES)
        return str(snapshot_download(name, revision=commit, allow_patterns=patterns))
    except GatedRepoError:
        raise InputError(
            f"model.path: {name} is gated: accept its terms at https://huggingface.co/{name}, then `hf auth login` on "
            "every node"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"model.path: {name} is neither a folder nor on the hub, or it is private: `hf auth login`"
        ) from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"model.path: {name} cannot be had from the hub: {one_line(error)}") from None


def portable(folder: str) -> str:
    """What another node finds the model by: name and commit where the folder is in the hub's cache, else the folder."""
    found = re.search(r"/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})/?$", folder)
    return f"{PREFIX}{found[1]}/{found[2]}@{found[3]}" if found else folder


def local_folder(model: str, weights: bool = True) -> str:
    """The folder on this machine of what `portable` named. Raises InputError."""
    if not model.startswith(PREFIX):
        return model
    name, _, commit = model.removeprefix(PREFIX).partition("@")
    return fetched(name, weights, commit)
