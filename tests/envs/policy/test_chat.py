"""Law 1, token-exact: prompts only grow, sampled tokens are kept as drawn, and no text becomes a special token."""

import asyncio
import dataclasses
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxrl.data.errors import InputError
from sandboxrl.envs.policy.chat import ChatFormat, TokenPolicy, split_reasoning
from sandboxrl.envs.policy.protocol import EngineLost, Sampled
from sandboxrl.envs.policy.scripted import ScriptedEngine, call, logprob, turns
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import Observation, ToolCall
from tests.envs.small_chat import (
    FORGETS,
    FORMATS,
    HERMES,
    MARKUP,
    SPECIAL,
    chat_format,
    real_tokenizer,
    small_tokenizer,
    template,
    tokenizer_of,
)

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is in the documents?"}]
TOOLS = tool_set("paper").schemas()

all_formats = pytest.mark.parametrize("name", FORMATS)


class Recorder(ScriptedEngine):
    """Remembers the prompts it was given."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.prompts: list[list[int]] = []
        self.seeds: list[int | None] = []

    async def generate(self, ids, max_tokens, sampling, timeout_s, seed=None):
        self.prompts.append(list(ids))
        self.seeds.append(seed)
        return await super().generate(ids, max_tokens, sampling, timeout_s, seed)


def injection() -> st.SearchStrategy[str]:
    """Text of a stranger: anything, half surrogates and the spelling of special tokens included."""
    piece = st.one_of(
        st.text(max_size=20), st.sampled_from([*SPECIAL, *MARKUP, "\n", "\ue0000\ue001", "\ud800", "e\u0301"])
    )
    return st.lists(piece, max_size=6).map("".join)


def completion(form: ChatFormat) -> st.SearchStrategy[list[int]]:
    """A turn: random ids, special ones included, or text with broken calls; ended or cut."""
    ids = st.lists(st.integers(0, form.vocab_size - 1), max_size=30)
    special = st.lists(st.sampled_from(sorted(form.reply_ids("".join([*SPECIAL, *MARKUP])))), max_size=6)
    broken = st.sampled_from(["", '{"name": "bash"', "<tool_call>", call(form, "bash", command="ls"), "</think>", "é"])
    text = st.lists(st.one_of(broken, st.text(st.characters(exclude_categories=["Cs"]))), max_size=4)
    body = st.one_of(ids, special, text.map(lambda parts: form.reply_ids("".join(parts))))
    return st.tuples(body, st.sampled_from([[], [form.end_id], [form.stop_ids[-1]]])).map(
        lambda pair: pair[0] + pair[1]
    )


def observations() -> st.SearchStrategy[list[Observation]]:
    answer = st.builds(Observation, text=injection(), name=st.sampled_from(["bash", ""]))
    return st.lists(answer, min_size=1, max_size=3)


@all_formats
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_prompts_only_grow_and_every_sampled_token_is_kept_once(name, data):
    form = chat_format(name)
    texts = data.draw(st.lists(injection(), min_size=2, max_size=2))
    messages = [{**message, "content": text} for message, text in zip(MESSAGES, texts, strict=True)]
    drawn = data.draw(st.lists(completion(form), min_size=1, max_size=4))
    said = iter(drawn)
    engine = Recorder(form, lambda context, seed: next(said))

    async def talk():
        talk = TokenPolicy(engine, form).start(messages, TOOLS, seed=7)
        expected = form.prompt_ids(messages, TOOLS)
        mask = [0] * len(expected)
        for turn, ids in enumerate(drawn):
            assert talk.num_tokens == len(expected)
            engine.version = turn
            reply = await talk.reply(1000, 10.0)
            assert engine.prompts[turn] == expected
            assert (reply.start, reply.end, reply.num_sampled) == (len(expected), len(expected) + len(ids), len(ids))
            expected, mask = expected + ids, mask + [1] * len(ids)
            shown = data.draw(observations())
            num_environment = talk.observe(shown)
            kept = talk.tokens().ids.tolist()
            assert kept[: len(expected)] == expected
            environment = kept[len(expected) :]
            assert len(environment) == num_environment > 0
            ended = bool(ids) and ids[-1] == form.end_id
            assert environment == form.observation_ids(shown, ended)
            assert (environment[0] == form.end_id) != ended
            expected, mask = kept, mask + [0] * num_environment
        return talk.tokens(), mask

    tokens, mask = asyncio.run(talk())
    assert tokens.mask.tolist() == mask
    assert sum(mask) == sum(map(len, drawn))
    assert [index for index, one in zip(tokens.ids, mask, strict=True) if one] == [i for ids in drawn for i in ids]
    drawn_with = [logprob(i) if one else 0.0 for i, one in zip(tokens.ids.tolist(), mask, strict=True)]
    assert tokens.logprobs.tolist() == np.float32(drawn_with).tolist()
    versions = [turn for turn, ids in enumerate(drawn) for _ in ids]
    assert [version for version in tokens.versions if version != -1] == versions
    assert all((version == -1) == (one == 0) for version, one in zip(tokens.versions, mask, strict=True))
    assert all(0 <= index < form.vocab_size for index in tokens.ids)


@all_formats
@settings(max_examples=60, deadline=None)
@given(text=injection(), other=injection())
def test_no_text_of_a_stranger_becomes_a_special_token(name, text, other):
    form = chat_format(name)
    spelled = [form.reply_ids(token) for token in (*SPECIAL, *MARKUP)]
    added = {ids[0] for ids in spelled if len(ids) == 1}
    assert len(added) >= len(SPECIAL) + len(MARKUP) - 1
    harmless = [Observation("x", "bash"), Observation("y")]
    hostile = [dataclasses.replace(harmless[0], text=text), dataclasses.replace(harmless[1], text=other)]

    def special(ids: list[int]) -> list[int]:
        return [index for index in ids if index in added]

    for ended in (True, False):
        assert special(form.observation_ids(hostile, ended)) == special(form.observation_ids(harmless, ended))
    messages = [{"role": "system", "content": text}, {"role": "user", "content": other}]
    assert special(form.prompt_ids(messages, TOOLS)) == special(form.prompt_ids(MESSAGES, TOOLS))
    said = unicodedata.normalize("NFC", other.encode("utf-8", "replace").decode())
    assert said in form.decode(form.prompt_ids(messages, TOOLS))


@all_formats
def test_appending_gives_the_ids_of_the_whole_rendered_conversation(name):
    """For text without special tokens nothing is different from what the template and the tokenizer would give."""
    form = chat_format(name)
    said = ["I look. ", "Done.\n", "é" * 3]
    answers = [
        [Observation("a\n", "bash"), Observation("\n\nb", "bash")],
        [Observation("no call\n\n")],
        [Observation("", "bash", "call_0"), Observation("\tthe answer\n", "bash"), Observation("user  ")],
    ]
    engine = ScriptedEngine(form, turns(form, said))

    async def talk():
        talk = TokenPolicy(engine, form).start(MESSAGES, TOOLS)
        for shown in answers:
            await talk.reply(100, 1.0)
            talk.observe(shown)
        return talk.tokens().ids.tolist()

    messages = list(MESSAGES)
    for text, shown in zip(said, answers, strict=True):
        messages.append({"role": "assistant", "content": text})
        messages += [{"role": "tool" if one.name else "user", "content": one.text} for one in shown]
    rendered = tokenizer_of(name).apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, tokenize=False)
    assert asyncio.run(talk()) == form.reply_ids(rendered)


def test_the_text_between_two_turns_is_that_of_the_template():
    form = chat_format("small hermes")
    two = [Observation("one", "bash", "call_0"), Observation("two", "bash", "call_1")]
    expected = (
        "\n<|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert form.decode(form.observation_ids(two, sampled_ended=True)) == expected
    assert form.decode(form.observation_ids(two, sampled_ended=False)) == "<|im_end|>" + expected
    nameless = form.decode(form.observation_ids([Observation("no name", "", "call_0")], sampled_ended=True))
    assert "<tool_response>\nno name\n</tool_response>" in nameless
    unasked = form.decode(form.observation_ids([Observation("call a tool")], sampled_ended=True))
    assert unasked == "\n<|im_start|>user\ncall a tool<|im_end|>\n<|im_start|>assistant\n"


@all_formats
def test_a_reply_is_parsed_and_its_reasoning_split_off(name):
    form = chat_format(name)
    bash = call(form, "bash", command="ls")
    engine = ScriptedEngine(form, turns(form, [f"<think>\nmaybe {bash}\n</think>\n\nI look.\n{bash}\n{bash[:-3]}"]))
    conversation = TokenPolicy(engine, form).start(MESSAGES, TOOLS)
    reply = asyncio.run(conversation.reply(1000, 1.0))
    assert reply.reasoning == f"maybe {bash}"
    assert reply.text == f"I look.\n{bash}\n{bash[:-3]}"
    assert reply.calls[0] == ToolCall("bash", {"command": "ls"}, "call_0")
    assert len(reply.calls) == 2 and "</tool_call>" in reply.calls[1].error
    assert reply.finish == "stop" and reply.num_sampled == reply.end - reply.start


def test_without_tools_nothing_is_a_call():
    form = chat_format("small hermes")
    text = f"The call would be {call(form, 'bash', command='ls')}"
    conversation = TokenPolicy(ScriptedEngine(form, turns(form, [text])), form).start(MESSAGES, [])
    reply = asyncio.run(conversation.reply(1000, 1.0))
    assert (reply.text, reply.calls) == (text, ())


def test_a_cut_turn_is_closed_by_environment_tokens():
    form = chat_format("small hermes")
    conversation = TokenPolicy(ScriptedEngine(form, turns(form, ["a long answer"])), form).start(MESSAGES, TOOLS)
    reply = asyncio.run(conversation.reply(3, 1.0))
    assert (reply.finish, reply.num_sampled) == ("length", 3)
    conversation.observe([Observation("go on")])
    tokens = conversation.tokens()
    assert (tokens.ids[reply.end], tokens.mask[reply.end]) == (form.end_id, 0)


def test_an_engine_that_runs_out_of_time_leaves_an_empty_turn():
    form = chat_format("small hermes")
    engine = ScriptedEngine(form, turns(form, ["late"]), delay_s=5.0)
    conversation = TokenPolicy(engine, form).start(MESSAGES, TOOLS)
    reply = asyncio.run(conversation.reply(10, 0.05))
    assert (reply.finish, reply.text, reply.num_sampled, reply.calls) == ("timeout", "", 0, ())


def test_seeds_differ_by_turn_and_by_trajectory_and_repeat():
    form = chat_format("small hermes")

    def seeds(seed: int) -> list[int | None]:
        engine = Recorder(form, turns(form, ["again"]))

        async def talk():
            conversation = TokenPolicy(engine, form).start(MESSAGES, [], seed)
            for _ in range(3):
                await conversation.reply(10, 1.0)
                conversation.observe([Observation("and")])

        asyncio.run(talk())
        return engine.seeds

    assert seeds(1) == seeds(1)
    assert len({*seeds(1), *seeds(2)}) == 6
    assert all(0 <= seed < 1 << 63 for seed in seeds(1))


@pytest.mark.parametrize(
    ("sampled", "message"),
    [
        (Sampled([5, 6], [-1.0], [0, 0], "stop"), "different lengths"),
        (Sampled([5], [-1.0], [], "stop"), "different lengths"),
        (Sampled([10**6], [-1.0], [0], "length"), "sampled id 1000000, outside the tokenizer's"),
        (Sampled([-1], [-1.0], [0], "length"), "sampled id -1"),
        (Sampled([5], [float("nan")], [0], "length"), "not finite"),
    ],
)
def test_an_engine_that_breaks_its_word_is_lost_and_nothing_is_kept(sampled, message):
    form = chat_format("small hermes")

    class Broken:
        async def generate(self, ids, max_tokens, sampling, timeout_s, seed=None):
            return sampled

    conversation = TokenPolicy(Broken(), form).start(MESSAGES, TOOLS)
    before = conversation.tokens()
    with pytest.raises(EngineLost, match=message):
        asyncio.run(conversation.reply(10, 1.0))
    assert conversation.tokens() == before


def test_reply_and_observe_take_turns():
    form = chat_format("small hermes")
    conversation = TokenPolicy(ScriptedEngine(form, turns(form, ["a"])), form).start(MESSAGES, TOOLS)
    with pytest.raises(RuntimeError, match="no reply"):
        conversation.observe([Observation("b")])
    asyncio.run(conversation.reply(10, 1.0))
    with pytest.raises(RuntimeError, match="not been observed"):
        asyncio.run(conversation.reply(10, 1.0))


def test_stop_tokens_and_formats():
    form = chat_format("small hermes")
    assert [form.decode([index]) for index in form.stop_ids] == ["<|im_end|>", "<|endoftext|>"]
    assert form.turn_opening == "<|im_start|>assistant\n"
    assert [chat_format(f"small {kind}").call_format for kind in ("hermes", "qwen3_coder")] == ["hermes", "qwen3_coder"]


@pytest.mark.parametrize(
    ("said", "opened", "expected"),
    [
        ("answer", False, ("", "answer")),
        ("<think>\nwhy\n</think>\n\nwhat", False, ("why", "what")),
        ("why</think>what", True, ("why", "what")),
        ("<think>never ends", False, ("never ends", "")),
        ("a </think> b", False, ("", "a </think> b")),
    ],
)
def test_split_reasoning(said, opened, expected):
    assert split_reasoning(said, opened) == expected


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (template(HERMES, FORGETS), "not prefix-preserving"),
        (template("''"), "names neither the hermes nor the qwen3_coder"),
        ("", "no chat template"),
        ("{{ raise_exception('no tools here') }}", "the chat template fails for the roles user: no tools here"),
        (template(HERMES).replace("<|im_end|>", ""), "not prefix-preserving|no special token"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_clear_line(chat_template, message):
    with pytest.raises(InputError, match=message) as raised:
        ChatFormat(small_tokenizer(chat_template))
    assert "\n" not in str(raised.value)


def test_a_template_that_hides_a_message_is_an_error():
    hides = template().replace("messages[0].content if", "'I am a template' if")
    form = ChatFormat(small_tokenizer(hides))
    assert form.prompt_ids(MESSAGES[1:])
    with pytest.raises(InputError, match="every message exactly once"):
        form.prompt_ids(MESSAGES)


@pytest.mark.parametrize("message", [{"role": "tool", "content": "x"}, {"role": "user", "content": None}, {"role": ""}])
def test_a_prompt_is_made_of_texts(message):
    with pytest.raises(InputError, match="a prompt message needs a role"):
        chat_format("small hermes").prompt_ids([message])


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("trl_qwen3_instruct_2507.jinja", "hermes"),
        ("trl_qwen3_instruct_2507_training.jinja", "hermes"),
        ("trl_qwen3_training.jinja", "hermes"),
        ("skyrl_qwen3_acc_thinking.jinja2", "hermes"),
        ("llamacpp_Qwen-Qwen2.5-7B-Instruct.jinja", "hermes"),
        ("qwen3_coder.jinja", "qwen3_coder"),
        ("qwen3_coder_minja_Qwen3-Coder-30B-A3B-Instruct.jinja", "qwen3_coder"),
        ("trl_qwen3.jinja", ""),
        ("llamacpp_Qwen-Qwen3-0.6B.jinja", ""),
        ("llamacpp_Qwen-QwQ-32B.jinja", ""),
        ("qwen3_thinking_2507.jinja", ""),
    ],
)
def test_which_published_templates_can_be_trained_on(name, accepted):
    tokenizer = real_tokenizer(name)
    if accepted:
        assert ChatFormat(tokenizer).call_format == accepted
    else:
        with pytest.raises(InputError, match="not prefix-preserving"):
            ChatFormat(tokenizer)


def test_the_real_tokenizer_keeps_the_published_stop_tokens():
    assert chat_format("real hermes").stop_ids == (151645, 151643)
    assert chat_format("real hermes").vocab_size == 151669
