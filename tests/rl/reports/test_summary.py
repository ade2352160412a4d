"""The metrics of a step: what they say about how its trajectories ended."""

from sandboxrl.envs.trajectory import StopReason, Trajectory
from sandboxrl.rl.reports.metrics import summarise


def test_sandboxes_that_the_policy_ended_are_counted_by_source():
    ends = [("a", StopReason.FINISHED), ("a", StopReason.SANDBOX_ENDED), ("b", StopReason.FINISHED)]
    found = summarise([Trajectory("t", source, "sandbox", stop, (), score=0.0, reward=0.0) for source, stop in ends])
    assert found["stop/sandbox_ended"] == 1 / 3 and found["stop/sandbox_ended/a"] == 1 / 2
    assert "stop/sandbox_ended/b" not in found
