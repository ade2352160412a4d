"""The shipped fakes keep the contracts of the parts they stand for."""

import asyncio
import errno

import pytest

from sandboxrl.envs.policy.chat import TokenPolicy
from sandboxrl.envs.policy.scripted import (
    MemorySandbox,
    ScriptedEngine,
    call,
    expert,
    idler,
    logprob,
    stumbler,
    talker,
    turns,
)
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import ANSWER, BackendUnavailable, FileRefused, SandboxConfig, SandboxError
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import Observation
from tests.envs.small_chat import chat_format

PAPER = tool_set("paper")
both = pytest.mark.parametrize("name", ["small hermes", "small qwen3_coder"])


def play(name: str, script, num_turns: int) -> tuple[str, list[list[Observation]]]:
    """(answer file, observations of each turn) of a script in a real sandbox, by the shortest possible loop."""
    form = chat_format(name)

    async def run():
        backend = open_backend(SandboxConfig())
        try:
            box = await backend.start()
            try:
                await box.write({"documents/a.txt": b"the answer is B\n"})
                conversation = TokenPolicy(ScriptedEngine(form, script), form).start(
                    [{"role": "user", "content": "Which?"}], PAPER.schemas()
                )
                seen: list[list[Observation]] = []
                for _ in range(num_turns):
                    reply = await conversation.reply(1000, 5.0)
                    seen.append([await PAPER.run(one, box, 5.0) for one in reply.calls])
                    conversation.observe(seen[-1] or [Observation(PAPER.no_call_message, is_error=True)])
                try:
                    answer = (await box.read(ANSWER)).decode()
                except FileRefused as refused:
                    assert refused.errno == errno.ENOENT
                    answer = ""
                return answer, seen
            finally:
                await box.close()
        finally:
            await backend.close()

    try:
        return asyncio.run(run())
    except BackendUnavailable as error:
        pytest.skip(str(error))


@both
def test_the_expert_looks_searches_writes_and_finishes(name):
    answer, seen = play(name, expert(chat_format(name), "it's B", word="answer"), 5)
    assert answer == "it's B"
    assert "a.txt" in seen[0][0].text and "the answer is B" in seen[1][0].text
    assert [one.finished for turn in seen for one in turn] == [False, False, False, False, True]
    assert not any(one.is_error or one.exit_code for turn in seen for one in turn)


@both
def test_the_stumbler_is_told_every_time_and_gets_there(name):
    answer, seen = play(name, stumbler(chat_format(name), "B"), 7)
    assert answer == "B"
    told = [[one.is_error for one in turn] for turn in seen]
    assert told == [[], [True], [True], [True], [True], [True, False], [False]]
    errors = [turn[0].text for turn in seen[1:6]]
    assert "unknown tool 'basch'; did you mean 'bash'" in errors[1] and "needs the argument 'command'" in errors[2]
    assert len(set(errors)) >= 4
    assert seen[6][0].finished


@both
def test_the_idler_never_finishes_and_the_talker_never_calls(name):
    _, seen = play(name, idler(chat_format(name)), 4)
    assert [[one.finished for one in turn] for turn in seen] == [[False]] * 4
    _, seen = play(name, talker(chat_format(name)), 3)
    assert seen == [[], [], []]


def generate(engine: ScriptedEngine, max_tokens: int = 100, timeout_s: float = 1.0):
    prompt = engine.chat_format.prompt_ids([{"role": "user", "content": "x"}])
    return asyncio.run(engine.generate(prompt, max_tokens, None, timeout_s, seed=5))


def test_the_engine_is_deterministic_and_ends_turns_as_a_real_one():
    form = chat_format("small hermes")
    engine = ScriptedEngine(form, lambda context, seed: f"{seed} {len(context)}")
    first = generate(engine)
    assert first == generate(engine)
    assert form.decode(first.ids).startswith("5 ") and first.ids[-1] == form.end_id and first.finish == "stop"
    assert first.logprobs == [logprob(index) for index in first.ids]
    assert all(-1 <= one < 0 for one in first.logprobs) and len(set(first.logprobs)) > 1
    engine.version = 3
    assert set(generate(engine).versions) == {3}
    cut = generate(engine, max_tokens=2)
    assert (cut.ids, cut.finish) == (first.ids[:2], "length")
    late = ScriptedEngine(form, turns(form, ["x"]), delay_s=60.0)
    assert generate(late, timeout_s=0.01).finish == "timeout"


def test_exact_ids_are_used_as_they_are():
    form = chat_format("small hermes")
    assert generate(ScriptedEngine(form, lambda context, seed: [7, 8])).finish == "length"
    sampled = generate(ScriptedEngine(form, lambda context, seed: [7, form.stop_ids[1]]))
    assert (sampled.ids, sampled.finish) == ([7, form.stop_ids[1]], "stop")


@both
def test_a_call_is_written_in_the_models_own_format(name):
    form = chat_format(name)
    text = call(form, "file_editor", command="view", path="f", view_range=[1, 2])
    assert form.parse(text, PAPER.schemas())[1][0].arguments == {"command": "view", "path": "f", "view_range": [1, 2]}


def test_the_memory_sandbox_keeps_the_contract_of_files():
    async def use():
        box = MemorySandbox({"a/b": b"x" * 10})
        assert await box.read("/testbed/a/b") == await box.read("a/b", 10)
        for path, limit, code in (("nope", 10, errno.ENOENT), ("a", 10, errno.EISDIR), ("a/b", 9, errno.EFBIG)):
            with pytest.raises(FileRefused) as raised:
                await box.read(path, limit)
            assert raised.value.errno == code
        await box.write({"c": b"\xff"})
        assert await box.read("/testbed/c") == b"\xff"
        with pytest.raises(SandboxError, match="runs no commands"):
            await box.exec("ls")
        assert box.alive
        await box.close()
        assert box.files == {} and not box.alive

    asyncio.run(use())
