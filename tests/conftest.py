"""What all tests share: a Ray cluster, a small model, and how skips are told.

Heavy tests run one after the other in one process, beside the light ones (`make test`): what they share (the cluster,
the imports, an engine) starts once. No test starts a Ray cluster in that process, where Ray would keep traces of it: it
joins `ray_cluster`, or it starts its own in a process of its own.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_cluster import SANDBOXES, RayCluster, running_cluster


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line per reason, however many tests were skipped for it."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        reason = reason.removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"{count:4}  {reason}")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """The one cluster of all tests that do not need one of their own; this process has joined it."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sandbox_node(ray_cluster: RayCluster) -> Iterator[None]:
    """A second node, the only one that offers sandboxes, for the tests of one file."""
    from sandboxrl.rl.cluster.hosts import RESOURCE

    with ray_cluster.node(num_cpus=8, resources={RESOURCE: SANDBOXES}):
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of 0.2M parameters with a tokenizer of bytes, as a Hugging Face folder. Do not write into it."""
    from tests.rl.tiny import byte_tokenizer, save, tiny_model

    folder: Path = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    return save(tiny_model(vocabulary=len(tokenizer)), folder)
