"""The starting policy: its scripts meet the real sandbox's answers, its lessons hold what they should, and it is made
whole or not at all."""

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sandboxrl.data.builtin import KEYS, NOTE_WORDS, build, split_of
from sandboxrl.data.errors import InputError
from sandboxrl.envs.grading.grader import Grader, GraderConfig
from sandboxrl.envs.policy.chat import ChatFormat, TokenPolicy
from sandboxrl.envs.policy.scripted import ScriptedEngine
from sandboxrl.envs.rollout import Environment, rollout
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, SandboxConfig
from sandboxrl.envs.trajectory import StopReason
from sandboxrl.rl.run import resolve_model
from sandboxrl.rl.start.config import CONFIGS, SHIPPED, StartConfig, fingerprint, start_folder
from sandboxrl.rl.start.make import (
    copied_positions,
    copying,
    copying_lessons,
    expectations,
    faster_dtype,
    gradient,
    main,
    make_lessons,
    make_model,
    make_start,
)
from sandboxrl.rl.start.scripts import ARM, LIMITS, SCRIPTS, TOOLS, Player, Shelf, play_all
from sandboxrl.rl.start.tokenizer import CHAT_TEMPLATE, SPECIAL, make_tokenizer

SMALL = StartConfig(hidden_size=32, intermediate_size=32, num_heads=1, num_tasks=12, copy_steps=2, act_steps=2)


@pytest.fixture(scope="module")
def chat_format() -> ChatFormat:
    return ChatFormat(make_tokenizer(0))


def players_of(chat_format: ChatFormat, num_tasks: int = 4) -> list[Player]:
    """Each script on a few tasks."""
    tasks = build("tiny", "train", num_tasks * len(SCRIPTS), 3)
    names = [name for name in SCRIPTS for _ in range(num_tasks)]
    return [Player(chat_format, task, name, random.Random(7)) for task, name in zip(tasks, names, strict=True)]


def test_a_shelf_answers_as_the_real_sandbox_does(chat_format):
    """Token for token: what the model is taught is what it will meet."""
    on_shelf, in_box = players_of(chat_format), players_of(chat_format)
    taught = play_all(on_shelf)

    async def really() -> list:
        pool = Pool(open_backend(SandboxConfig()), warm=4)
        try:
            met = []
            for player in in_box:
                policy = TokenPolicy(ScriptedEngine(chat_format, player), chat_format)
                met.append(await rollout(player.task, policy, Environment(ARM, limits=LIMITS, tools=TOOLS, pool=pool)))
            return met
        finally:
            await pool.close()

    try:
        met = asyncio.run(really())
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert [player.copied for player in on_shelf] == [player.copied for player in in_box]
    for ours, real in zip(taught, met, strict=True):
        assert (ours.stop, ours.answer) == (real.stop, real.answer)
        assert ours.tokens == real.tokens, chat_format.decode(real.tokens.ids)


def test_a_shelf_refuses_what_it_does_not_know():
    for command in ("cat /testbed/documents/east.txt", "ls", "grep -rn a /testbed", "grep -r a.b /testbed"):
        with pytest.raises(ValueError, match="no script uses"):
            asyncio.run(Shelf().exec(command))


def test_the_first_script_solves_every_task_and_no_other_does_reliably(chat_format):
    async def scores(players, trajectories):
        grader = Grader(GraderConfig())
        try:
            return [await grader.grade(p.task, t.answer, None) for p, t in zip(players, trajectories, strict=True)]
        finally:
            await grader.close()

    mean = {}
    for name in SCRIPTS:
        players = [Player(chat_format, task, name, random.Random(1)) for task in build("tiny", "train", 60, 1)]
        trajectories = play_all(players)
        assert all(trajectory.stop is StopReason.FINISHED for trajectory in trajectories)
        mean[name] = sum(asyncio.run(scores(players, trajectories))) / len(players)
    assert mean.pop("searches") == 1
    assert mean.pop("guesses") < 0.4
    assert set(mean.values()) == {0}


def test_words_are_the_same_token_everywhere(chat_format):
    for word in (*KEYS, *NOTE_WORDS):
        (bare,) = chat_format.reply_ids(word)
        assert chat_format.reply_ids(f" {word}")[-1] == bare
        assert chat_format.reply_ids(f"={word}\n")[1] == bare
        assert chat_format.reply_ids(f'": "{word}"}}')[1] == bare
    assert len(chat_format.reply_ids("7042")) == 4
    assert all(len(chat_format.reply_ids(text)) == 1 for text in SPECIAL)
    assert chat_format.decode(chat_format.reply_ids("Zürich, 東京 \t{}")) == "Zürich, 東京 \t{}"


def test_the_template_writes_a_whole_conversation_as_it_was_lived(chat_format):
    """Rendered anew from messages with tool calls, as a server does, a trajectory has the same text."""
    tokenizer = make_tokenizer(0)
    for player, trajectory in zip(players := players_of(chat_format, 1), play_all(players), strict=True):
        opening, *rest = chat_format.decode(trajectory.tokens.ids).split("<|im_start|>user\n")[1].split("<|im_end|>")
        messages = [{"role": "system", "content": ARM.system.replace("{folder}", "/testbed/documents")}]
        messages.append({"role": "user", "content": opening})
        for turn in trajectory.turns:
            calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in turn.calls]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            messages += [{"role": "tool", "content": seen.text} for seen in turn.observations if not seen.finished]
        text = tokenizer.apply_chat_template(messages, tools=TOOLS.schemas(), tokenize=False)
        assert text == chat_format.decode(trajectory.tokens.ids) + "\n", player.script


def test_a_saved_tokenizer_is_the_same(chat_format, tmp_path):
    make_tokenizer(0).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for trajectory in play_all(players_of(chat_format, 2)):
        text = chat_format.decode(trajectory.tokens.ids)
        assert loaded.encode(text) == trajectory.tokens.ids.tolist() == ChatFormat(loaded).reply_ids(text)


def test_lessons_weigh_what_the_policy_says_and_most_what_it_copies(chat_format):
    config = replace(SMALL, num_tasks=200, flawed=0.5)
    lessons = make_lessons(config, chat_format, lambda done: None)
    assert (len(lessons.copying), len(lessons.acting), len(lessons.probes)) == (400, 200, 64)
    for ids, weights in lessons.copying + lessons.acting + lessons.probes:
        assert len(ids) == len(weights) and any(weights)
    assert {weight for _, weights in lessons.copying for weight in weights} == {0.0, 0.2, 1.0}
    assert {weight for _, weights in lessons.acting for weight in weights} == {0.0, 1.0, 5.0}
    assert {weight for _, weights in lessons.probes for weight in weights} == {0.0, 1.0, 2.0}
    assert max(len(ids) for ids, _ in lessons.copying) < min(len(ids) for ids, _ in lessons.acting)
    good = sum(chat_format.decode(ids).count("file_text") == 2 and 5.0 in weights for ids, weights in lessons.acting)
    assert 70 <= good <= 130


def test_copied_positions_hold_the_copied_text(chat_format):
    for player, trajectory in zip(players := players_of(chat_format), play_all(players), strict=True):
        assert len(player.copying_turns()) == {"searches": 2, "forgets": 1}.get(player.script, 0)
        for turn in player.copying_turns():
            positions = copied_positions(player, trajectory, turn)
            ids = [trajectory.tokens.ids[position] for position in positions]
            assert chat_format.decode(ids) == player.copied[turn]
            assert all(trajectory.tokens.mask[position] for position in positions)
        if player.script == "searches":
            for turn, (ids, weights) in zip((1, 2), copying_lessons(player, trajectory, 0.0), strict=True):
                copied = [token for token, weight in zip(ids, weights, strict=True) if weight]
                context = [token for token, weight in zip(ids, weights, strict=True) if not weight]
                assert chat_format.decode(copied) == player.copied[turn]
                assert set(copied) <= set(context)  # what is to be copied is in the window


def test_the_policy_is_made_whole_reproducibly_and_from_training_tasks(tmp_path):
    told = []
    first = make_start(SMALL, tmp_path / "a", lambda stage, done, note: told.append((stage, done)), torch.float32)
    second = make_start(SMALL, tmp_path / "b", lambda stage, done, note: None, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(first)
    twin = AutoModelForCausalLM.from_pretrained(second)
    assert model.config.model_type == "qwen3" and model.config.tie_word_embeddings
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(one, one.bfloat16().float()) for one in model.parameters()) and model.dtype == torch.float32
    assert ChatFormat(AutoTokenizer.from_pretrained(first)).vocab_size == model.config.vocab_size
    assert model.generation_config.eos_token_id[0] == model.config.eos_token_id

    record = json.loads((first / "start.json").read_text())
    assert StartConfig(**record["config"]) == SMALL
    assert record["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert [stage for stage, _ in told][0] == "tokenizer"
    assert [done for _, done in told] == sorted(done for _, done in told)
    for task in build("tiny", "train", SMALL.num_tasks, SMALL.seed):
        assert all(split_of(text) == "train" for text in task.documents.values())


def test_training_teaches(tmp_path):
    losses = []
    for steps in (1, 30):
        config = replace(SMALL, num_tasks=60, copy_steps=steps, copy_batch=16, act_steps=1)
        made = make_start(config, tmp_path / str(steps), lambda *_: None)
        losses.append(json.loads((made / "start.json").read_text())["measured"]["copying"]["loss"])
    assert losses[1] < losses[0] - 1


def test_an_interrupted_making_leaves_nothing(tmp_path):
    class Stop(Exception):
        pass

    def progress(stage, done, note):
        if stage == "scripts":
            raise Stop

    with pytest.raises(Stop):
        make_start(SMALL, tmp_path / "model", progress)
    assert list(tmp_path.iterdir()) == []


def test_a_step_is_the_same_however_its_lessons_are_spread(chat_format):
    """Padding, order and number of forward passes change nothing but the last digits."""
    lessons = make_lessons(replace(SMALL, num_tasks=8), chat_format, lambda done: None)
    model = make_model(SMALL, make_tokenizer(0))
    batch = lessons.acting + lessons.copying
    loss = gradient(model, batch, torch.float32)
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    total = sum(sum(weights[1:]) for _, weights in batch)
    mean, means = 0.0, [torch.zeros_like(one) for one in ours]
    for lesson in batch:
        share = sum(lesson[1][1:]) / total
        mean += share * gradient(model, [lesson], torch.float32)
        for one, parameter in zip(means, model.parameters(), strict=True):
            one += share * parameter.grad
    assert loss == pytest.approx(mean, rel=1e-4)
    for one, other in zip(ours, means, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_faster_type_is_measured_and_leaves_no_trace(chat_format):
    lessons = make_lessons(SMALL, chat_format, lambda done: None)
    model = make_model(SMALL, make_tokenizer(0))
    before = [parameter.clone() for parameter in model.parameters()]
    assert faster_dtype(model, lessons.acting[:4]) in (torch.float32, torch.bfloat16)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_ships_is_what_todays_code_expects(name, tmp_path):
    """Else make it anew, with the command in rl/start/make.py; docs/quickstart.md has curves of it."""
    shipped = SHIPPED / name
    record = json.loads((shipped / "start.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    assert StartConfig(**record["config"]) == CONFIGS[name]
    assert record["expects"] == expectations(tokenizer) == expectations(make_tokenizer(CONFIGS[name].seed))
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (shipped / "model.safetensors").stat().st_size < 3_000_000
    model = AutoModelForCausalLM.from_pretrained(shipped, dtype="auto")
    assert model.dtype == torch.float32
    probes = make_lessons(replace(CONFIGS[name], num_tasks=0), ChatFormat(tokenizer), lambda done: None).probes
    found = copying(model, probes)
    assert min(found.values()) > 0.9
    assert found == pytest.approx(record["measured"]["rounded"], abs=0.01)


def test_the_shipped_policy_is_copied_to_the_runs_and_no_seed_of_a_run_changes_it(tmp_path):
    found = Path(resolve_model("start:tiny", tmp_path))
    assert found.parent == tmp_path / "start" and list(found.parent.iterdir()) == [found]
    assert {file.name: file.read_bytes() for file in found.iterdir()} == {
        file.name: file.read_bytes() for file in (SHIPPED / "tiny").iterdir()
    }
    (found / "start.json").write_text("{}")  # what is there is taken as it is: a run has begun with it
    assert resolve_model("start:tiny", tmp_path) == resolve_model("start:tiny@0", tmp_path) == str(found)
    assert (found / "start.json").read_text() == "{}"


def test_another_policy_is_made_once_for_its_settings(tmp_path):
    folder = tmp_path / "start" / f"tiny@5-{fingerprint(StartConfig(seed=5))}"
    folder.mkdir(parents=True)
    assert resolve_model("start:tiny@5", tmp_path) == str(folder.resolve())
    prints = {fingerprint(StartConfig(seed=seed)) for seed in range(4)} | {fingerprint(StartConfig(flawed=0.1))}
    assert len(prints) == 5 and fingerprint(StartConfig()) in prints


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("start:tinny", "did you mean 'tiny'"),
        ("start:", "unknown starting policy"),
        ("start:tiny@", "a seed"),
        ("start:tiny@-1", "a seed"),
        ("start:tiny@07", "a seed"),
        ("start:tiny@7@8", "a seed"),
    ],
)
def test_an_unknown_policy_is_named(path, message, tmp_path):
    with pytest.raises(InputError, match=message):
        start_folder(path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_what_it_cannot_make(tmp_path, capsys):
    assert main(["tiny", "--out", str(tmp_path)]) == main(["tinny", "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
