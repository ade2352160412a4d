"""A misbehaving server is survived or reported, and never becomes a reply the model did not give."""

import asyncio
import json
import logging
import time
import traceback
from email.utils import formatdate

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.policy.endpoint import EndpointPolicy
from sandboxrl.envs.policy.protocol import EngineLost, Sampling
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import Observation, ToolCall
from tests.envs.server import Server, answer, cut, cut_stream, drip, endless, error, garble, say, send, slam, slow

MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
TOOLS = tool_set("paper").schemas()


def talk(*behaviours, turns=1, tools=TOOLS, max_tokens=1000, timeout_s=20.0, observe=None, **options):
    """(replies, the server, the conversation) of so many turns against a server that behaves like this."""

    async def run():
        async with Server(*behaviours) as server:
            policy = EndpointPolicy(server.url, "m", **{"backoff_s": 0.01, **options})
            conversation = policy.start(MESSAGES, tools, seed=3)
            replies = []
            try:
                for _ in range(turns):
                    replies.append(await conversation.reply(max_tokens, timeout_s))
                    observe and conversation.observe(observe(replies[-1]))
            finally:
                await policy.close()
            return replies, server, conversation

    return asyncio.run(run())


def lost(*behaviours, **options) -> str:
    with pytest.raises(EngineLost) as raised:
        talk(*behaviours, **options)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    return str(raised.value)


SURVIVED = {
    "rate limit": error(429),
    "server error": error(500),
    "overloaded": error(503, "<html>busy</html>"),
    "gateway": send(b"<html>Bad Gateway</html>", 502),
    "timeout status": error(408),
    "cut body": cut(),
    "cut before the body": cut(0),
    "cut stream": cut_stream(),
    "closed socket": slam(),
    "not http": garble(),
    "not json": send(b"Internal error"),
    "empty": send(b""),
    "deep json": send(b"[" * 100_000),
    "other json": send([1, 2]),
    "null": send(b"null"),
    "no choices": send({"choices": []}),
    "no message": send({"choices": [{"finish_reason": "stop"}]}),
    "null message": send({"choices": [{"message": None, "finish_reason": "stop"}]}),
    "text of another type": say({"x": 1}),
    "calls of another type": say("x", tool_calls={"a": 1}),
    "no finish reason": say("x", finish=None),
    "aborted": say("half an ans", finish="abort"),
    "filtered": say("", finish="content_filter"),
    "error in an answer": send({"error": {"message": "overloaded"}}),
    "usage of another type": send({**answer("x"), "usage": {"completion_tokens": "many"}}),
    "endless": endless(),
    "never done": drip(0.01),
}


@pytest.mark.parametrize("behaviour", SURVIVED.values(), ids=SURVIVED)
def test_a_misbehaving_server_is_survived(behaviour):
    replies, server, _ = talk(behaviour, behaviour, say("B"), request_timeout_s=0.5)
    assert (replies[0].text, replies[0].finish) == ("B", "stop")
    assert len(server.requests) == 3
    assert server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize("behaviour", SURVIVED.values(), ids=SURVIVED)
def test_a_server_that_goes_on_misbehaving_is_lost_and_never_a_reply(behaviour):
    message = lost(behaviour, attempts=2, request_timeout_s=0.2)
    assert "(attempt 2 of 2)" in message


def test_an_endless_answer_is_read_up_to_a_bound():
    started = time.monotonic()
    message = lost(endless(), attempts=1, max_tokens=10, request_timeout_s=100.0, timeout_s=100.0)
    assert "did not end within 1049216 bytes" in message and time.monotonic() - started < 20.0


def test_nobody_there():
    async def run():
        async with Server(say("x")) as server:
            url = server.url
        policy = EndpointPolicy(url, "m", attempts=2, backoff_s=0.01)
        try:
            with pytest.raises(EngineLost, match="attempt 2 of 2"):
                await policy.start(MESSAGES, []).reply(10, 5.0)
            with pytest.raises(InputError, match="does not answer"):
                await policy.check()
        finally:
            await policy.close()

    asyncio.run(run())


def test_a_slow_first_byte_is_waited_for_and_then_tried_again():
    assert talk(slow(0.3, say("late")), request_timeout_s=5.0)[0][0].text == "late"
    replies, server, _ = talk(slow(30, say("never")), say("soon"), request_timeout_s=0.2)
    assert (replies[0].text, len(server.requests)) == ("soon", 2)


def test_time_that_runs_out_while_the_server_is_silent_is_its_failure():
    started = time.monotonic()
    assert "no complete answer within" in lost(slow(30, say("x")), timeout_s=0.3)
    assert "asks" in lost(error(429, "asks", retry_after="100"), timeout_s=1.0)
    assert "no answer in the" in lost(say("x"), timeout_s=0.0)
    assert time.monotonic() - started < 5.0


def test_retry_after_is_kept():
    started = time.monotonic()
    assert talk(error(429, retry_after="0.3"), say("B"))[0][0].text == "B"
    assert 0.3 <= time.monotonic() - started < 5.0
    far = formatdate(time.time() + 10**6, usegmt=True)
    assert "429" in lost(error(429, retry_after=far))  # longer than the time there is: no use waiting
    assert talk(error(429, retry_after="soon"), say("B"))[0][0].text == "B"
    assert time.monotonic() - started < 5.0


def test_waits_grow_between_attempts():
    started = time.monotonic()
    lost(error(500), attempts=4, backoff_s=0.1)
    assert 0.05 + 0.1 + 0.2 <= time.monotonic() - started < 5.0
    started = time.monotonic()
    lost(error(500), attempts=6, backoff_s=0.1, max_backoff_s=0.1)
    assert time.monotonic() - started < 3.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_no_retry_mends_is_not_retried(status):
    assert "(attempt 1 of 6)" in lost(error(status, "wrong model"))


OVERFLOWS = [
    "This model's maximum context length is 4096 tokens and your request has 4000 input tokens (1000 > 4096 - 4000).",
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens "
    "(4000 in the messages, 1000 in the completion). Please reduce the length of the messages or completion.",
    "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5000 "
    "tokens: 4000 tokens from the input messages and 1000 tokens for the completion.",
    "input length and `max_tokens` exceed context limit: 4000 + 1000 > 4096",
    "the request exceeds the available context size, n_prompt_tokens: 4000, n_ctx: 4096",
]


@pytest.mark.parametrize("message", OVERFLOWS)
def test_an_overflowing_context_shrinks_the_answer(message):
    replies, server, _ = talk(error(400, message), say("short", finish="length"), attempts=1)
    assert (replies[0].text, replies[0].finish) == ("short", "length")
    assert [body["max_tokens"] for body in server.bodies] == [1000, 96]


def test_an_unreadable_overflow_halves_and_then_gives_up_as_a_failure():
    replies, server, _ = talk(error(400, "context window exceeded"), error(400, "context window exceeded"), say("x"))
    assert [body["max_tokens"] for body in server.bodies] == [1000, 500, 250]
    assert "context window exceeded" in lost(error(400, "context window exceeded"))
    assert "no number of tokens fits" in lost(error(400, "max_tokens=9 cannot be greater than max_model_len=9000"))


FULL = [
    "This model's maximum context length is 4096 tokens and your request has 4096 input tokens (1000 > 4096 - 4096).",
    "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens, "
    "which exceeds this limit even without any output tokens.",
    "This model's maximum context length is 4096 tokens. However, your prompt contains 99999 characters (more than 9",
    "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.",
    "prompt is too long: 210000 tokens > 200000 maximum",
]


@pytest.mark.parametrize("message", FULL)
def test_a_full_context_is_an_empty_reply_cut_by_length(message):
    replies, server, _ = talk(error(400, message))
    assert (replies[0].text, replies[0].finish, replies[0].num_sampled) == ("", "length", 0)
    assert len(server.requests) == 1


def test_a_bad_request_that_speaks_of_tokens_is_no_overflow():
    assert "temperature" in lost(error(400, "maximum temperature is 2; max_tokens is fine"))


def test_a_server_that_wants_max_completion_tokens_gets_it():
    wants = error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    replies, server, _ = talk(wants, say("x"), say("y"), turns=2)
    assert [reply.text for reply in replies] == ["x", "y"]
    assert ["max_completion_tokens" in body for body in server.bodies] == [False, True, True]
    assert "max_tokens" not in server.bodies[2]


def test_conversations_that_learn_it_at_the_same_time_all_go_on():
    wants = slow(0.1, error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."))

    async def run():
        async with Server(*[wants] * 4, say("x")) as server:
            policy = EndpointPolicy(server.url, "m", attempts=1)
            try:
                return await asyncio.gather(*(policy.start(MESSAGES, []).reply(10, 5.0) for _ in range(4)))
            finally:
                await policy.close()

    assert [reply.text for reply in asyncio.run(run())] == ["x"] * 4


def test_what_is_sent():
    sampling = Sampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0.1, repetition_penalty=1.05)
    _, server, _ = talk(say("x"), sampling=sampling, extra_body={"chat_template_kwargs": {"a": 1}, "top_p": 0.9})
    body = server.bodies[0]
    assert server.requests[0].path == "/v1/chat/completions"
    assert (body["model"], body["messages"], body["tools"], body["max_tokens"]) == ("m", MESSAGES, TOOLS, 1000)
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.7, 0.9, 20, 0.1)
    assert (body["repetition_penalty"], body["chat_template_kwargs"]) == (1.05, {"a": 1})
    assert not body.get("stream")
    _, server, _ = talk(say("x"), tools=[])
    assert not {"tools", "top_k", "min_p", "repetition_penalty", "tool_choice"} & set(server.bodies[0])


def test_seeds_repeat_and_differ_by_turn():
    def seeds():
        _, server, _ = talk(say("x"), turns=3, observe=lambda reply: [Observation("go on")])
        return [body["seed"] for body in server.bodies]

    assert seeds() == seeds() and len(set(seeds())) == 3
    assert all(0 <= seed < 1 << 31 for seed in seeds())


def test_calls_are_all_answered_by_their_ids_and_reasoning_is_replayed():
    calls = [("a", "bash", '{"command": "ls"}'), ("b", "bash", '{"command": "pwd"}'), ("c", "finish", "")]
    first = answer("I look.", calls, "tool_calls", prompt=100, sampled=20, reasoning_content="why")

    def observe(reply):
        return [Observation("two", "bash", "b"), Observation("one", "bash", "a")]

    replies, server, conversation = talk(send(first), say("done", prompt=150, sampled=5), turns=2, observe=observe)
    reply = replies[0]
    assert (reply.text, reply.reasoning, reply.finish, reply.num_sampled) == ("I look.", "why", "stop", 20)
    assert reply.calls == (
        ToolCall("bash", {"command": "ls"}, "a"),
        ToolCall("bash", {"command": "pwd"}, "b"),
        ToolCall("finish", {}, "c"),
    )
    assistant, *answers = server.bodies[1]["messages"][2:]
    assert (assistant["content"], assistant["reasoning_content"]) == ("I look.", "why")
    assert [one["id"] for one in assistant["tool_calls"]] == ["a", "b", "c"]
    assert [one["function"]["arguments"] for one in assistant["tool_calls"]] == [*[c[2] for c in calls[:2]], "{}"]
    assert [(one["role"], one["tool_call_id"], one["content"]) for one in answers] == [
        ("tool", "a", "one"),
        ("tool", "b", "two"),
        ("tool", "c", "This call was not carried out."),
    ]
    assert conversation.num_tokens == 155 and conversation.tokens() is None


def test_reasoning_under_the_other_name_or_not_replayed():
    def observe(reply):
        return [Observation("go on")]

    replies, server, _ = talk(say("x", reasoning="why"), turns=2, observe=observe)
    assert replies[0].reasoning == "why" and server.bodies[1]["messages"][2]["reasoning"] == "why"
    _, server, _ = talk(say("x", reasoning="why"), turns=2, observe=observe, replay_reasoning=False)
    assert set(server.bodies[1]["messages"][2]) == {"role", "content"}
    assert server.bodies[1]["messages"][3] == {"role": "user", "content": "go on"}


MALFORMED = [
    ('{"command": "ls', "arguments are not valid JSON: Unterminated string"),
    ("[1]", "must be a JSON object, not a list"),
    ('{"command": "\\ud800"}', "unpaired surrogate"),
    (7, "must be a JSON object, not a number"),
]


@pytest.mark.parametrize(("arguments", "message"), MALFORMED)
def test_malformed_arguments_are_answered_and_replayed_as_json(arguments, message):
    calls = [("a", "bash", arguments), ("a", "bash", '{"command": "ls"}')]
    replies, server, _ = talk(
        say("", calls, "tool_calls"),
        turns=2,
        observe=lambda reply: [Observation(call.error or "fine", call.name, call.id) for call in reply.calls],
    )
    bad, good = replies[0].calls
    assert message in bad.error and bad.arguments == {} and good.arguments == {"command": "ls"}
    assert bad.id != good.id
    assistant, *answers = server.bodies[1]["messages"][2:]
    assert [one["tool_call_id"] for one in answers] == [one["id"] for one in assistant["tool_calls"]]
    assert message in answers[0]["content"]
    for call in assistant["tool_calls"]:
        assert isinstance(json.loads(call["function"]["arguments"]), dict)


@pytest.mark.parametrize("call", ["text", None, {}, {"id": 3, "function": "f"}, {"function": {"arguments": "{}"}}])
def test_a_call_without_shape_is_answered_too(call):
    raw = answer("x", finish="tool_calls", tool_calls=[call])
    replies, server, _ = talk(
        send(raw), turns=2, observe=lambda reply: [Observation("no", one.name, one.id) for one in reply.calls]
    )
    assert replies[0].calls[0].error == "the tool call has no name" and replies[0].calls[0].id
    assert server.bodies[1]["messages"][3]["tool_call_id"] == server.bodies[1]["messages"][2]["tool_calls"][0]["id"]


def test_text_that_is_not_unicode_does_not_stop_the_conversation():
    replies, server, _ = talk(
        send(b'{"choices": [{"message": {"content": "a\\ud83d"}, "finish_reason": "stop"}]}'),
        turns=2,
        observe=lambda reply: [Observation("go on")],
    )
    assert replies[0].text == "a?" and len(server.requests) == 2


def test_finish_reasons_and_counts():
    for reason, finish in (("stop", "stop"), ("tool_calls", "stop"), ("eos", "stop"), ("length", "length")):
        assert talk(say("x", finish=reason))[0][0].finish == finish
    assert talk(say("x", sampled=1001))[0][0].finish == "length"
    replies, _, conversation = talk(send({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}))
    assert (replies[0].text, replies[0].num_sampled, conversation.num_tokens) == ("", 0, 0)


def test_a_cancelled_reply_leaves_nothing_behind():
    async def run():
        async with Server(slow(30, say("x"))) as server:
            policy = EndpointPolicy(server.url, "m")
            task = asyncio.create_task(policy.start(MESSAGES, []).reply(10, 60.0))
            while not server.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await policy.close()

    asyncio.run(run())


def test_check_says_what_is_wrong_before_work_begins(monkeypatch):
    async def check(*behaviours, model="qwen3"):
        async with Server(*behaviours) as server:
            policy = EndpointPolicy(server.url.replace("//", "//me:hidden@"), model)
            try:
                await policy.check()
            finally:
                await policy.close()

    listed = send({"object": "list", "data": [{"id": "qwen3", "object": "model"}]})
    asyncio.run(check(listed))
    asyncio.run(check(error(404)))
    asyncio.run(check(send(b"hello")))
    with pytest.raises(InputError, match="does not serve 'qwen4'; did you mean 'qwen3'") as raised:
        asyncio.run(check(listed, model="qwen4"))
    assert "hidden" not in str(raised.value)
    with pytest.raises(InputError, match="refuses the key in OPENAI_API_KEY"):
        asyncio.run(check(error(401)))


def test_what_is_not_an_endpoint_is_an_input_error(monkeypatch):
    for url in ("localhost:8000", "ftp://x", "", "http://"):
        with pytest.raises(InputError, match="an endpoint is a URL"):
            EndpointPolicy(url, "m")
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(InputError, match="MY_KEY, which should hold the key, is not set"):
        EndpointPolicy("http://x/v1", "m", key_variable="MY_KEY")


def test_the_key_is_sent_and_shown_nowhere(monkeypatch, caplog):
    key = "sk-a-very-secret-key-123456"
    monkeypatch.setenv("MY_KEY", key)
    caplog.set_level(logging.INFO)
    _, server, _ = talk(say("x"), key_variable="MY_KEY")
    assert server.requests[0].headers["authorization"] == f"Bearer {key}"
    shown = [repr(EndpointPolicy("http://me:hidden@x/v1", "m", key_variable="MY_KEY"))]
    for behaviour in (
        error(401, f"Incorrect API key provided: {key}"),
        error(400, f"bad {key}"),
        error(500, f"bad {key}"),
        send(f"<{key}>".encode()),
        send({"error": {"message": f"bad {key}"}}),
    ):
        with pytest.raises(EngineLost) as raised:
            talk(behaviour, attempts=1, key_variable="MY_KEY")
        shown += ["".join(traceback.format_exception(raised.value)), repr(raised.value)]
    shown += [str(body) for body in server.bodies] + [caplog.text]
    assert not [text for text in shown if key in text or "hidden" in text]
