"""The evaluator: every trial once, whatever fails or is killed; machine faults listed, tried again, never scored."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.chaos import evaluation, killed_evaluation
from sandboxrl.data.benchmarks import BENCHMARKS, Selection
from sandboxrl.data.errors import InputError
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader
from sandboxrl.envs.policy.endpoint import EndpointPolicy
from sandboxrl.envs.rollout import Environment, RolloutLimits
from sandboxrl.envs.trajectory import StopReason, Trajectory
from sandboxrl.rl.evaluation.evaluate import (
    FAILURES,
    RESULTS,
    EvaluationStopped,
    ResultFolder,
    Sampler,
    plan,
    read_results,
    result_key,
    run_trials,
)
from tests.envs.server import Server, cut, cut_stream, error, garble, say, send, slam

ROOT = Path(__file__).resolve().parents[3]
TASKS = [Task(f"t{i}", "aime25", f"What is {i}+{i}?", str(2 * i), "math") for i in range(5)]
SELECTION = Selection(BENCHMARKS["aime25"], TASKS)
SETTINGS = {"model": "scripted:guess", "seed": 0}


def ended(trial, stop=StopReason.ANSWERED, score=1.0, **fields):
    notes = {"benchmark": trial.benchmark, "repeat": trial.repeat, "digest": trial.digest}
    lost = stop.machine_fault
    return Trajectory(
        trial.task.id, trial.task.source, trial.mode, stop, (), score=None if lost else score, seed=trial.seed,
        reward=None if lost else score, metadata=notes, **fields,
    )  # fmt: skip


def run(folder, trials, sample, **options):
    held = ResultFolder(folder, SETTINGS)
    try:
        return asyncio.run(run_trials(trials, sample, held, pause_s=0.0, **options))
    finally:
        held.close()


def keys(folder):
    return sorted(result_key(one.to_dict()) for one in read_results(folder))


def test_the_plan_covers_every_mode_and_repeat_with_a_seed_of_its_own():
    trials = plan([SELECTION], ("llm", "sandbox"), 3, seed=1)
    assert len({trial.key for trial in trials}) == len(trials) == len({trial.seed for trial in trials}) == 30
    assert [trial.repeat for trial in trials] == ([0] * 5 + [1] * 5 + [2] * 5) * 2
    assert [trial.mode for trial in trials] == ["llm"] * 15 + ["sandbox"] * 15
    assert plan([SELECTION], ("llm", "sandbox"), 3, seed=1) == trials
    assert {t.seed for t in plan([SELECTION], ("llm", "sandbox"), 3, seed=2)}.isdisjoint(t.seed for t in trials)
    assert len(plan([SELECTION], ("llm",), 0, seed=1)) == 5 * 16  # the paper's number
    swe = Selection(BENCHMARKS["swebench_verified"], TASKS)
    assert {trial.mode for trial in plan([swe], ("llm", "sandbox"), 1, 0)} == {"sandbox"}


def test_a_second_run_samples_nothing_and_changes_nothing(tmp_path):
    trials, asked = plan([SELECTION], ("llm",), 2, 0), []

    async def sample(trial):
        asked.append(trial.key)
        return ended(trial)

    assert run(tmp_path, trials, sample) == []
    before = (tmp_path / RESULTS).read_bytes()
    assert run(tmp_path, trials, sample) == []
    assert len(asked) == 10 and (tmp_path / RESULTS).read_bytes() == before


def test_a_lost_trial_is_tried_again_and_never_scored(tmp_path):
    trials, asked = plan([SELECTION], ("llm",), 1, 0), []

    async def sample(trial):
        asked.append(trial.task.id)
        if trial.task.id == "t1" or (trial.task.id == "t2" and asked.count("t2") == 1):
            return ended(trial, StopReason.SANDBOX_LOST, error="gone")
        return ended(trial)

    lost = run(tmp_path, trials, sample, attempts=3)
    assert [trial.task.id for trial in lost] == ["t1"] and asked.count("t1") == 3 and asked.count("t2") == 2
    assert {key[2] for key in keys(tmp_path)} == {"t0", "t2", "t3", "t4"}
    told = [json.loads(line) for line in (tmp_path / FAILURES).read_text().splitlines()]
    assert sorted((row["task_id"], row["attempt"]) for row in told) == [("t1", 1), ("t1", 2), ("t1", 3), ("t2", 1)]
    assert all(row["stop"] == "sandbox_lost" and row["error"] == "gone" for row in told)

    async def healed(trial):
        return ended(trial)

    assert run(tmp_path, trials, healed) == []
    assert len(keys(tmp_path)) == 5


def test_a_dead_machine_stops_the_evaluation_instead_of_using_up_its_tasks(tmp_path):
    trials, asked = plan([SELECTION], ("llm",), 16, 0), []

    async def sample(trial):
        asked.append(trial.key)
        return ended(trial, StopReason.ENGINE_LOST, error="connection refused")

    with pytest.raises(EvaluationStopped, match="connection refused"):
        run(tmp_path, trials, sample, attempts=2, parallel=1, max_lost_in_a_row=4)
    assert len(asked) == 8


def test_an_input_error_ends_everything_at_once(tmp_path):
    async def sample(trial):
        if trial.task.id == "t0":
            raise InputError("no such backend")
        await asyncio.sleep(60)

    with pytest.raises(InputError, match="no such backend"):
        run(tmp_path, plan([SELECTION], ("llm",), 1, 0), sample)


def test_no_more_than_so_many_at_a_time(tmp_path):
    running = most = 0

    async def sample(trial):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return ended(trial)

    run(tmp_path, plan([SELECTION], ("llm",), 8, 0), sample, parallel=3)
    assert most == 3


def test_a_line_that_a_kill_left_unfinished_is_cut_off(tmp_path):
    trials = plan([SELECTION], ("llm",), 1, 0)

    async def sample(trial):
        return ended(trial)

    run(tmp_path, trials, sample)
    whole = (tmp_path / RESULTS).read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (1, len(lines[-1]) - 1):
        (tmp_path / RESULTS).write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
        assert len(read_results(tmp_path)) == 4
        run(tmp_path, trials, sample)
        assert sorted((tmp_path / RESULTS).read_bytes().splitlines()) == sorted(whole.splitlines())
    (tmp_path / RESULTS).write_bytes(lines[0] + b"broken\n" + lines[1])
    with pytest.raises(InputError, match=f"{RESULTS}:2: not a result"):
        ResultFolder(tmp_path, SETTINGS)


def test_results_of_another_experiment_are_not_mixed_in(tmp_path):
    async def sample(trial):
        return ended(trial)

    run(tmp_path, plan([SELECTION], ("llm",), 1, 0), sample)
    with pytest.raises(InputError, match="was made with seed=0, not 1"):
        ResultFolder(tmp_path, SETTINGS | {"seed": 1})
    changed = Selection(SELECTION.benchmark, [replace(TASKS[0], gold="7"), *TASKS[1:]])
    with pytest.raises(InputError, match="the rows have changed"):
        run(tmp_path, plan([changed], ("llm",), 1, 0), sample)
    held = ResultFolder(tmp_path, SETTINGS)
    with pytest.raises(InputError, match="in use by another evaluation"):
        ResultFolder(tmp_path, SETTINGS)
    held.close()


def test_a_misbehaving_server_costs_rows_and_never_points(tmp_path):
    """Every row meets another failure: twice, then never again; or for ever. What is scored was really answered."""
    transient = [error(429, retry_after="0"), error(500), cut(), cut_stream(), slam(), garble(), send(b"{"), send([])]
    tasks = [Task(f"{i}", "aime25", f"Row {i}: what is {i}+1?", str(i + 1), "math") for i in range(2 * len(transient))]
    asked = dict.fromkeys(range(len(tasks)), 0)

    async def behave(server, request, writer):
        row = int(request.body["messages"][0]["content"].partition("Row ")[2].partition(":")[0])
        asked[row] += 1
        broken = row >= len(transient)  # the second half never gets well
        kind = transient[row % len(transient)] if broken or asked[row] <= 2 else say(f"Answer: {row + 1}")
        await kind(server, request, writer)

    async def go():
        trials = plan([Selection(BENCHMARKS["aime25"], tasks)], ("llm",), 1, 0)
        async with Server(behave) as server:
            policy = EndpointPolicy(server.url, "m", attempts=3, backoff_s=0.001)
            grader, folder = Grader(), ResultFolder(tmp_path, SETTINGS)
            sampler = Sampler(
                [policy], Environment(load_arm("paper"), "llm", RolloutLimits(timeout_s=20), grader=grader)
            )
            try:
                return await run_trials(trials, sampler, folder, attempts=2, pause_s=0.0)
            finally:
                await policy.close()
                await grader.close()
                folder.close()

    lost = asyncio.run(go())
    assert sorted(int(trial.task.id) for trial in lost) == list(range(len(transient), len(tasks)))
    scored = read_results(tmp_path)
    assert sorted(int(one.task_id) for one in scored) == list(range(len(transient)))
    assert all(one.score == 1.0 and one.stop is StopReason.ANSWERED for one in scored)
    told = [json.loads(line) for line in (tmp_path / FAILURES).read_text().splitlines()]
    assert len(told) == 2 * len(transient) and all(row["stop"] == "engine_lost" and row["error"] for row in told)


# ------------------------------------------------------------------------------------------------------------- kill -9


def needs_bubblewrap():
    from sandboxrl.envs.sandbox.pool import open_backend
    from sandboxrl.envs.sandbox.protocol import BackendUnavailable, SandboxConfig

    async def start():
        backend = open_backend(SandboxConfig())
        try:
            await (await backend.start()).close()
        finally:
            await backend.close()

    try:
        asyncio.run(start())
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.timeout(170)
def test_killed_at_any_moment_it_ends_with_the_same_results(tmp_path):
    needs_bubblewrap()
    found = killed_evaluation(tmp_path, repeats=2, most_results=3, seed=7)
    assert found.kills.total() >= 1 and found.num_results == 20
    assert found.differing == [] and found.num_left_running == 0
    summaries = [json.loads((tmp_path / name / "summary.json").read_text())["aime25"] for name in ("killed", "calm")]
    for mode in ("llm", "sandbox"):
        assert summaries[0][mode]["score"] == summaries[1][mode]["score"]


def test_a_terminated_run_closes_what_it_opened_and_says_how_to_go_on(tmp_path):
    needs_bubblewrap()
    process = evaluation(tmp_path, tmp_path / "out", repeats=4, delay_s=5)
    time.sleep(2.5)
    process.terminate()
    _, told = process.communicate(timeout=30)
    assert process.returncode == 1 and "the same command continues" in told and "Traceback" not in told
