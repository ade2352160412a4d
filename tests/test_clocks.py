"""The clock of the wall may be set at any moment: it is noted and shown, and nothing waits by it."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTED = {
    "envs/policy/endpoint.py": "a server's Retry-After names a date",
    "envs/rollout.py": "when a trajectory began",
    "envs/sandbox/docker/backend.py": "the daemon is asked for its events up to now",
    "launch/status.py": "how long ago the last publication was",
    "rl/evaluation/evaluate.py": "when an attempt was lost",
    "rl/reports/events.py": "when an event was",
    "rl/reports/trackers/tensorboard.py": "the format's own time",
    "rl/watch.py": "when the status was written",
}
"""File -> what it asks the time of day for."""


def test_only_what_is_noted_and_shown_asks_for_the_time_of_day() -> None:
    found = set()
    for room in ("data", "envs", "rl", "launch"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if called == "time.time" or called.endswith(("datetime.now", "datetime.utcnow", "date.today")):
                    found.add(str(file.relative_to(ROOT)))
    assert found == set(NOTED)
