"""What is counted in trajectories: capability use of appendix D, verification and structure, tokens, time, cost."""

import json
import math
from pathlib import Path

import pytest

from sandboxrl.envs.trajectory import StopReason, ToolCall, Trajectory, Turn
from sandboxrl.rl.reports.analysis import Prices, busy_s, capabilities, capability_use, cost, habits, summaries, summary
from sandboxrl.rl.reports.interchange import load_published_run
from sandboxrl.rl.reports.tables import infrastructure, tables

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = {
    "external": [
        "pip install rdkit", "apt-get -y install default-jre", "sudo apt install x", "cd /tmp && wget http://x",
        "curl -s http://x | sh", "import requests\nrequests.get(u)", "from bs4 import BeautifulSoup",
        "from selenium import webdriver", "from Bio import SeqIO", "import pubchempy", "pip3 install -q numpy",
    ],
    "files": [
        "open('a.txt')", "json.load(f)", "df = pd.read_csv(p)", "cat a.txt", "ls && grep -rn x .",
        "find . -name '*.txt'",
        "sort a | head -3", "tail -f log", "os.path.join(a)", "from pathlib import Path", "glob.glob('*')",
        "pickle.load(f)", "np.save('a', b)",
    ],
    "computation": [
        "from scipy.optimize import root", "x = fsolve(f, 1)", "minimize(f, x0)", "odeint(f, y, t)",
        "solve_ivp(f, (0, 1), y)", "quad(f, 0, 1)", "for i in range(1000):", "range(1, 10**6)", "range(100_000)",
        "range(int(1e6))", "x = 1\nwhile x < 5:\n  x += 1", "itertools.permutations(a)", "combinations(range(9), 3)",
        "i=0; while [ $i -lt 3 ]; do echo; done",
    ],
}  # fmt: skip
NOTHING = [
    "ls -l", "echo done", "python a.py", "printf x > /testbed/answer.txt", "for i in range(10):", "range(999)",
    "concatenate(x)", "print('in the meanwhile')", "is_open = fileopen(x)", "catalog", "headers = 1", "squad(x)",
    "minimized = 3", "finder x", "prequests.gets()", "pip list",
]  # fmt: skip


def bash(command):
    return Turn("", (ToolCall("bash", {"command": command}),))


@pytest.mark.parametrize(("category", "code"), [(name, one) for name, many in EXAMPLES.items() for one in many])
def test_the_papers_examples_are_seen(category, code):
    assert category in capabilities(bash(code))


@pytest.mark.parametrize("code", NOTHING)
def test_what_only_looks_alike_is_not(code):
    assert capabilities(bash(code)) == frozenset()


def test_files_that_are_written_count_and_other_arguments_do_not():
    def editor(**arguments):
        return Turn("open('x')", (ToolCall("file_editor", arguments),))

    assert capabilities(editor(command="create", path="/cat grep", file_text="fsolve(f, 0)")) == {"computation"}
    assert capabilities(editor(command="view", path="open(")) == frozenset()
    assert capabilities(Turn("I will run: cat a.txt")) == frozenset()


def trajectory(task="t", mode="sandbox", score=1.0, turns=(), stop=StopReason.FINISHED, **fields):
    benchmark = fields.pop("benchmark", "aime25")
    placement = fields.pop("placement", "sandbox")
    notes = {"benchmark": benchmark, "placement": placement}
    return Trajectory(
        task, benchmark, mode, stop, tuple(turns), score=score, reward=None if score is None else score * stop.complete,
        metadata=notes, **fields,
    )  # fmt: skip


def test_rates_are_turns_over_all_turns():
    told = capability_use([trajectory(turns=[bash("cat a; fsolve(f)"), bash("ls"), bash("ls"), bash("curl x")])])
    assert told == {"external": 0.25, "files": 0.25, "computation": 0.25}
    assert all(math.isnan(rate) for rate in capability_use([]).values())


def test_habits_are_counted_per_reply():
    text = "# Plan\n\n- one\n- two\n---\n$$\nx\n$$\nLet's verify that this matches: \u2713\n"
    told = habits([trajectory(mode="llm", turns=[Turn(text)]), trajectory(mode="llm", turns=[Turn("4")])])
    assert told["structure"] == 6 / 2 and told["verification"] >= 1
    assert habits([trajectory(turns=[Turn("The cheque is in the mail - 1. First")])]) == {
        "verification": 0,
        "structure": 0,
    }


def test_busy_time_leaves_out_the_pauses_between_sessions():
    times = ((0, 10), (5, 10), (100, 5))
    assert busy_s([trajectory(started_s=start, wall_s=wall) for start, wall in times]) == 20


TURNS = [Turn("", num_sampled=100, num_environment=50, tool_s=1.0), Turn("", num_sampled=10, tool_s=0.5)]


def test_a_summary_is_what_one_would_compute_by_hand():
    runs = [
        trajectory("a", turns=TURNS, num_prompt=200, started_s=0, wall_s=10),
        trajectory("a", score=0.0, turns=TURNS, num_prompt=200, started_s=10, wall_s=20),
        trajectory("b", turns=TURNS, num_prompt=200, started_s=0, wall_s=30, stop=StopReason.MAX_TURNS),
        trajectory("c", score=None, stop=StopReason.ENGINE_LOST),
    ]
    told = summary(runs, num_expected=4, prices=Prices(read=1e6, written=2e6))
    assert told["score"] == 0.75 and told["score_if_finished"] == 0.25 and told["pass@2"] == 1.0
    assert (told["num_tasks"], told["num_results"], told["num_missing"], told["repeats"]) == (2, 3, 1, 2)
    assert told["turns"] == 2 and told["tokens/total"] == 360 and told["tokens/environment"] == 50
    assert told["environment/token_share"] == pytest.approx(50 / 160)
    assert told["environment/time_share"] == pytest.approx(4.5 / 60)
    assert told["queries_per_minute"] == pytest.approx(3 / 0.5)
    assert told["stop/finished"] == pytest.approx(2 / 3) and told["stop/max_turns"] == pytest.approx(1 / 3)
    assert cost(runs[0], Prices(1e6, 2e6)) == 200 + 350 + 2 * 110 and told["cost"] == 3 * (200 + 350 + 220)
    assert math.isnan(summary([])["score"])
    for sampled, number in ((0, 1), (3, 0)):  # a prompt that does not fit, and one that leaves too little room
        full = trajectory(score=0.0, turns=[Turn("", num_sampled=sampled, cut=True)], stop=StopReason.MAX_TOKENS)
        assert summary([full])["num_too_long"] == number and summary([full])["score"] == 0.0


def test_summaries_list_what_is_wholly_missing():
    told = summaries([trajectory()], {("aime25", "sandbox"): 1, ("ifbench", "llm"): 5})
    assert told["ifbench"]["llm"]["num_missing"] == 5 and told["aime25"]["sandbox"]["num_missing"] == 0


# ------------------------------------------------------------------------------------------------------------- tables


def test_the_papers_tables_come_out():
    turn = Turn("", (ToolCall("bash", {"command": "cat a"}),), num_sampled=500, num_environment=500, tool_s=1.0)
    base = [
        *(trajectory(f"m{i}", mode, score=float(i < right), turns=[turn], num_prompt=1000, started_s=at + i, wall_s=1.0)
          for mode, right, at in (("llm", 1, 0), ("sandbox", 3, 100)) for i in range(4)),
        trajectory("l", benchmark="aa_lcr", score=0.0, placement="prompt", turns=[turn]),
        trajectory("l", benchmark="aa_lcr", score=1.0, turns=[turn]),
    ]  # fmt: skip
    trained = [trajectory(f"m{i}", mode, turns=[turn] * 2) for mode in ("llm", "sandbox") for i in range(4)]
    made = {table.name: table for table in tables({"base": base, "trained": trained})}
    assert made["results"].columns == ("Run", "Math llm", "Math sandbox", "Long-Cont. llm", "Long-Cont. sandbox")
    assert made["results"].rows == (("base", 25.0, 75.0, None, 100.0), ("trained", 100.0, 100.0, None, None))
    assert made["modes"].rows[0][:6] == ("base", "Math", "4", 25.0, 75.0, 50.0)
    assert made["placement"].rows == (("base", 0.0, 100.0),)
    assert made["capabilities"].rows[1] == ("trained", 0.0, 100.0, 0.0, 2.0)
    assert made["tokens"].rows[0] == ("base", "Math", 2.0, 2.0, 1.0)
    assert made["speed"].rows[0][3:] == (60.0, pytest.approx(6 / (4 / 60)), pytest.approx(1.5))
    assert made["comparison"].rows[0][:7] == ("trained", "Math", "llm", "4", 25.0, 100.0, 75.0)
    assert "habits" in made and made["results"].csv().splitlines()[1] == "base,25.0,75.0,,100.0"
    assert made["results"].text().splitlines()[4].split() == ["base", "25.0", "75.0", "-", "100.0"]


def test_table_7_comes_from_the_measurements_that_bench_sandbox_publishes():
    told = infrastructure(json.loads((ROOT / "docs" / "data" / "sandbox_scale.json").read_text()))
    rows = {name: ours for name, ours, peer in told.rows}
    assert 1 < rows["bubblewrap/held_512_MB_each"] < rows["docker/held_512_MB_each"] < 20
    assert rows["docker/held_512_MB_together"] == 512 * rows["docker/held_512_MB_each"]
    assert all("MB" in name for name in rows)  # no time, no count
    measured = {"x/held_8_MB_each": {"ours": 4.5, "peer": 50}, "image_MB": {"ours": 1}, "a_mbit": {"ours": 1}}
    assert infrastructure(measured).rows == (
        ("image_MB", 1.0, None), ("x/held_8_MB_each", 4.5, 50.0), ("x/held_8_MB_together", 36.0, 400.0),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ the published harness

STEP = {
    "thought": "I look.",
    "reasoning_content": "hm",
    "action": {"function": "execute_bash", "parameters": {"command": "cat a.txt"}},
    "observation": "Exit code: 0",
    "metadata": {"step": 1, "exec_time": 0.5},
}
SUBMIT = STEP | {"action": {"function": "submit", "parameters": {}}}


def published(folder, rows):
    folder.mkdir()
    (folder / "trajectory.json").write_text(json.dumps(rows))
    return load_published_run(folder)


def row(reward, steps):
    return {
        "problem_statement": "q",
        "trajectory": steps,
        "reward": reward,
        "agent_answer": "A",
        "ground_truth": "A",
    }


def test_trajectories_of_the_published_harness_are_read(tmp_path):
    rows = {"aime25_7_03": row(1.0, [STEP, SUBMIT]), "chembench4k_Solvent_00001": row(0.0, [STEP])}
    first, second = published(tmp_path / "20260101_chem_x_LLMinSandbox", rows)
    assert (first.task_id, first.metadata["repeat"], first.source) == ("aime25_7", 3, "aime25")
    assert first.stop is StopReason.FINISHED and first.reward == 1.0 and first.turns[0].reasoning == "hm"
    assert first.turns[0].sample_s == 0.5 and first.tool_s == 0  # its exec_time is the model's
    assert second.stop is StopReason.MAX_TURNS and second.task_id == "chembench4k_Solvent_00001"
    assert capability_use([first]) == {"external": 0.0, "files": 0.5, "computation": 0.0}
    vanilla, failed = published(
        tmp_path / "20260101_math_x_vanillaLLM",
        {"aime25_1_00": row(1.0, []), "aime25_2_00": row(0.0, []) | {"agent_answer": ""}},
    )
    assert vanilla.mode == "llm" and vanilla.stop is StopReason.ANSWERED and vanilla.turns[0].text == "A"
    assert failed.stop.machine_fault and failed.score is None  # there an error is a wrong answer
    assert [table.name for table in tables({"theirs": [first, second]})][0] == "results"
