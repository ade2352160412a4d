"""The metrics of a step: what they say about how its trajectories ended."""

from sandboxrl.envs.sandbox.protocol import Resources
from sandboxrl.envs.trajectory import StopReason, Trajectory
from sandboxrl.rl.reports.metrics import summarise


def test_sandboxes_that_the_policy_ended_are_counted_by_source():
    ends = [("a", StopReason.FINISHED), ("a", StopReason.SANDBOX_ENDED), ("b", StopReason.FINISHED)]
    found = summarise([Trajectory("t", source, "sandbox", stop, (), score=0.0, reward=0.0) for source, stop in ends])
    assert found["stop/sandbox_ended"] == 1 / 3 and found["stop/sandbox_ended/a"] == 1 / 2
    assert "stop/sandbox_ended/b" not in found


def test_what_sandboxes_used_is_told_where_it_is_known():
    used = [Resources(peak_memory_bytes=10, cpu_s=1.0), Resources(peak_memory_bytes=30), None]
    ended = [
        Trajectory("t", "a", "sandbox", StopReason.FINISHED, (), score=0.0, reward=0.0, resources=one) for one in used
    ]
    found = summarise([Trajectory.from_dict(one.to_dict()) for one in ended])
    assert found["sandbox/peak_memory_bytes_mean"] == 20 and found["sandbox/peak_memory_bytes_max"] == 30
    assert found["sandbox/cpu_s_mean"] == 1.0 and "sandbox/throttled_s_mean" not in found
