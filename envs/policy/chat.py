"""Messages to tokens and back, append-only: an Engine with a chat template becomes a token-exact Policy.

    prompt ids ─> sampled turn 1 ─> observation ids ─> sampled turn 2 ─> ...      one growing list, never re-encoded

The template is rendered for the prompt once. What it puts after a sampled turn is found by rendering a dummy
conversation with that turn's observations; only that text is encoded and appended. This is right only for a template
that keeps what was said (prefix-preserving). The constructor proves it and refuses others: the original Qwen3 template
and Thinking-2507 drop the `<think>` of earlier turns, so an appended history is not one the model was made for.

Only the template's own text may become special tokens. The content of messages and observations comes from strangers
(a document may hold `<|im_end|>` or `</tool_response>`), so it is encoded by a copy of the tokenizer that knows no
added token at all. (`split_special_tokens` of transformers is not enough: Qwen3's `<tool_response>` is an added but not
a "special" token.) Text without such strings gets the ids that the tokenizer gives the whole rendered text.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from sandboxrl.data.errors import InputError, described
from sandboxrl.envs.policy import calls
from sandboxrl.envs.policy.protocol import Engine, EngineLost, Message, Reply, Sampled, Sampling
from sandboxrl.envs.trajectory import Observation, Tokens, ToolCall

NUM_PROMPTS = 64
"""Encoded prompts that are kept: the trajectories of a group begin with the same one, which may be long."""

_SLOT = re.compile("\ue000([0-9]+)\ue001")
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Probe.",
        "parameters": {"type": "object", "properties": {"value": {"type": "string"}}, "required": ["value"]},
    },
}


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a Hugging Face folder, just as its tokenizer.json says. `AutoTokenizer` would import torch and
    every model there is, which takes 4 s; it is left to folders that have no such file. Raises InputError."""
    from transformers import PreTrainedTokenizerFast

    try:
        if (Path(folder) / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer("a text", add_special_tokens=False)  # wrong settings show when they are used
        return tokenizer
    except Exception as error:  # the library reads a damaged file with errors of every kind, bare ones too
        raise InputError(f"{folder}: its tokenizer cannot be read: {described(error)}") from error


class ChatFormat:
    """How one model's conversations become token ids. Shared by all conversations; holds no state of any.

    `tokenizer` is a fast Hugging Face tokenizer with a chat template. Raises InputError if its template cannot be used.
    """

    def __init__(self, tokenizer: Any, call_format: str = "auto") -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise InputError("token-exact chat needs a fast tokenizer (a model folder with tokenizer.json)")
        if not tokenizer.chat_template:
            raise InputError("the tokenizer has no chat template (chat_template.jinja in the model folder)")
        self._tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        """Ids from here on have no text; the model's embedding may have more rows."""
        self._added: dict[str, int] = {t.content: index for index, t in tokenizer.added_tokens_decoder.items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._added_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._plain = _without_added_tokens(tokenizer, self._added)
        self._frames: dict[tuple[str, ...], str] = {}
        self._prompts = lru_cache(NUM_PROMPTS)(self._encode)
        self.call_format = self._detect_format() if call_format == "auto" else call_format
        if self.call_format not in calls.FORMATS:
            raise InputError(f"call_format must be 'auto' or one of {', '.join(calls.FORMATS)}, not {call_format!r}")
        end = self._check_template()
        self.end_id = self._added[end]
        """The token that ends a turn, `<|im_end|>` in Qwen3."""
        self.turn_opening = self._frame(("user",)).rpartition(end)[2].lstrip("\n")
        """What the template puts before a turn of the policy, `<|im_start|>assistant` and a newline in Qwen3."""
        ends = (self.end_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(index for index in ends if index is not None))
        """Tokens that end sampling: end of turn, end of text and padding."""

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        """Ids of the conversation so far, ready for the policy's turn. Messages are system, user or assistant texts."""
        for message in messages:
            if message.get("role") not in ("system", "user", "assistant") or not isinstance(
                message.get("content"), str
            ):
                raise InputError(f"a prompt message needs a role (system, user, assistant) and text, not {message!r}")
        slotted = [{**message, "content": _slot(i)} for i, message in enumerate(messages)]
        rendered = self._render(slotted, tools)
        return list(self._prompts(rendered, tuple(message["content"] for message in messages)))

    def observation_ids(self, observations: Sequence[Observation], sampled_ended: bool) -> list[int]:
        """Ids the template puts between a sampled turn and the next: the answers, then the opening of the next turn.

        Begins behind the end-of-turn token if the policy sampled it (`sampled_ended`), else (it was cut) with it.
        An observation without name and call id answers no call and becomes a user message.
        """
        roles = tuple("tool" if one.name or one.call_id else "user" for one in observations)
        frame = self._frame(roles)
        if sampled_ended:
            frame = frame[len(self._end_token(frame)) :]
        return self._encode(frame, [one.text for one in observations])

    def reply_ids(self, text: str) -> list[int]:
        """Ids of a turn as a policy would write it (added tokens count), without the end-of-turn token. For scripts."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def parse(self, text: str, tools: Sequence[Any] = ()) -> tuple[str, tuple[ToolCall, ...]]:
        """What was said outside the calls, and the calls; see `sandboxrl.envs.policy.calls.parse`."""
        return calls.parse(text, self.call_format, tools)

    def _render(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tools=list(tools) or None, add_generation_prompt=True, tokenize=False
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise InputError(f"the chat template fails for the roles {roles}: {error}") from error

    def _encode(self, rendered: str, contents: Sequence[str]) -> list[int]:
        """Ids of template text with its slots filled. What lies between two added tokens of the template is encoded in
        one piece, as the tokenizer does with the whole text; nothing in a slot can become an added token."""
        ids: list[int] = []
        filled: list[int] = []
        run: list[str] = []
        for part in self._added_pattern.split(rendered):
            if part in self._added:
                ids += self._encode_plain("".join(run))
                ids.append(self._added[part])
                run.clear()
                continue
            for k, piece in enumerate(_SLOT.split(part)):
                run.append(contents[int(piece)] if k % 2 else piece)
                filled += [int(piece)] if k % 2 else []
        if filled != list(range(len(contents))):
            raise InputError("the chat template does not show every message exactly once and in order")
        return ids + self._encode_plain("".join(run))

    def _encode_plain(self, text: str) -> list[int]:
        text = text.encode("utf-8", "replace").decode()  # an unpaired surrogate cannot be encoded
        return list(self._plain.encode(text, add_special_tokens=False).ids) if text else []

    def _frame(self, roles: tuple[str, ...]) -> str:
        """What the template puts after an assistant's text, with slots for the observations of these roles."""
        if roles not in self._frames:
            said = "\ue002"
            opening = [{"role": "user", "content": "u"}, {"role": "assistant", "content": said}]
            answers = [{"role": role, "content": _slot(i)} for i, role in enumerate(roles)]
            self._frames[roles] = self._render(opening + answers).rpartition(said)[2]
        return self._frames[roles]

    def _end_token(self, frame: str) -> str:
        found = self._added_pattern.match(frame)
        if not found:
            raise InputError("the chat template puts no special token after an assistant turn; a turn could not end")
        return found[0]

    def _detect_format(self) -> str:
        rendered = self._render([{"role": "user", "content": "u"}], [_PROBE_TOOL])
        if "<tool_call>\n<function=" in rendered:
            return "qwen3_coder"
        if "<tool_call>" in rendered and '"arguments"' in rendered:
            return "hermes"
        raise InputError("the chat template names neither the hermes nor the qwen3_coder call format; set call_format")

    def _check_template(self) -> str:
        """Proves that this template can be continued by appending; returns its end-of-turn token."""
        said = "<think>\nwhy\n</think>\n\nwhat"
        for answers in (("tool",), ("tool", "tool"), ("user",), ("tool", "user")):
            messages: list[Message] = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
            expected = self._render(messages, [_PROBE_TOOL])
            for turn in range(3):
                opened = re.search(r"<think>\s*\Z", expected)
                messages.append({"role": "assistant", "content": said})
                messages += [{"role": role, "content": f"o{turn}{i}"} for i, role in enumerate(answers)]
                frame = _SLOT.sub(lambda slot, turn=turn: f"o{turn}{slot[1]}", self._frame(answers))  # type: ignore[misc]
                expected += (said[len(opened[0]) :] if opened else said) + frame
                if self._render(messages, [_PROBE_TOOL]) != expected:
                    raise InputError(
                        "the chat template is not prefix-preserving: it changes earlier turns (most often it drops "
                        "their <think>), so the next prompt would not begin with what was sampled; use a template "
                        "that keeps every turn, such as that of Qwen3 Instruct-2507 or Qwen3-Coder"
                    )
        rendered = self._render(messages, [_PROBE_TOOL])
        if self._encode(rendered, []) != self.reply_ids(rendered):
            raise InputError(
                "this tokenizer encodes text between special tokens in a way that cannot be kept token-exact"
            )
        return self._end_token(self._frame(("tool",)))


class TokenPolicy:
    """A Policy made of an engine: every conversation keeps the exact ids, masks, log-probs and versions."""

    def __init__(self, engine: Engine, chat_format: ChatFormat, sampling: Sampling | None = None) -> None:
        self.engine, self.chat_format, self.sampling = engine, chat_format, sampling or Sampling()

    def start(self, messages: Sequence[Message], tools: Sequence[Any], seed: int = 0) -> "TokenConversation":
        return TokenConversation(self, self.chat_format.prompt_ids(messages, tools), tools, seed)


class TokenConversation:
    """One trajectory's tokens. `reply` and `observe` take turns."""

    def __init__(self, policy: TokenPolicy, prompt_ids: list[int], tools: Sequence[Any], seed: int) -> None:
        self._policy, self._tools, self._seed = policy, tools, seed
        self._ids: list[int] = []
        self._mask: list[int] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []
        self._append_environment(prompt_ids)
        self._num_replies = 0
        self._unanswered = False

    @property
    def num_tokens(self) -> int:
        return len(self._ids)

    async def reply(self, max_tokens: int, timeout_s: float) -> Reply:
        """Sample one turn. `text` is what was said after the reasoning, calls included, without the closing token."""
        if self._unanswered:
            raise RuntimeError("the last reply has not been observed")
        chat_format = self._policy.chat_format
        seed = turn_seed(self._seed, self._num_replies)
        sampled = await self._policy.engine.generate(
            list(self._ids), max_tokens, self._policy.sampling, timeout_s, seed
        )
        self._check(sampled)
        start = self.num_tokens
        prompt_tail = chat_format.decode(self._ids[-4:])
        self._ids += sampled.ids
        self._mask += [1] * len(sampled.ids)
        self._logprobs += sampled.logprobs
        self._versions += sampled.versions
        self._num_replies += 1
        self._unanswered = True

        ended = bool(sampled.ids) and sampled.ids[-1] in chat_format.stop_ids
        said = chat_format.decode(sampled.ids[:-1] if ended else sampled.ids)
        reasoning, text = split_reasoning(said, opened=prompt_tail.rstrip().endswith("<think>"))
        found = chat_format.parse(text, self._tools)[1] if self._tools else ()
        return Reply(text, found, sampled.finish, len(sampled.ids), start, self.num_tokens, reasoning)

    def observe(self, observations: Sequence[Observation]) -> int:
        if not self._unanswered:
            raise RuntimeError("there is no reply to observe")
        chat_format = self._policy.chat_format
        sampled_ended = self._ids[-1] == chat_format.end_id
        ids = chat_format.observation_ids(observations, sampled_ended)
        self._append_environment(ids)
        self._unanswered = False
        return len(ids)

    def tokens(self) -> Tokens:
        """A copy: later turns do not change it."""
        return Tokens(self._ids, self._mask, self._logprobs, self._versions)  # type: ignore[arg-type]

    def _append_environment(self, ids: list[int]) -> None:
        self._ids += ids
        self._mask += [0] * len(ids)
        self._logprobs += [0.0] * len(ids)
        self._versions += [-1] * len(ids)

    def _check(self, sampled: Sampled) -> None:
        """An engine that breaks its word must not reach the learner."""
        size = self._policy.chat_format.vocab_size
        if not len(sampled.ids) == len(sampled.logprobs) == len(sampled.versions):
            raise EngineLost("the engine returned ids, log-probs and versions of different lengths")
        if wrong := [index for index in sampled.ids if not 0 <= index < size]:
            raise EngineLost(f"the engine sampled id {wrong[0]}, outside the tokenizer's {size} ids")
        if not all(math.isfinite(logprob) for logprob in sampled.logprobs):
            raise EngineLost("the engine returned a log-probability that is not finite")


def split_reasoning(said: str, opened: bool = False) -> tuple[str, str]:
    """(reasoning, rest) of a turn that may begin with a `<think>` block; `opened`: the prompt already opened it.

    A block that never closes is all reasoning.
    """
    body = said.lstrip()
    if not opened and not body.startswith("<think>"):
        return "", said
    reasoning, _, rest = body.removeprefix("<think>").partition("</think>")
    return reasoning.strip(), rest.lstrip("\n")


def _slot(index: int) -> str:
    return f"\ue000{index}\ue001"


def turn_seed(seed: int, turn: int) -> int:
    """An independent 63-bit seed for each turn of each trajectory."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{turn}".encode(), digest_size=8).digest()) >> 1


def _without_added_tokens(tokenizer: Any, added: dict[str, int]) -> Any:
    """A copy of the tokenizer's normalizer, splitter and model that knows no added token and adds none."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    plain = Tokenizer.from_str(json.dumps(state))
    for text in added:
        if set(plain.encode(text, add_special_tokens=False).ids) & set(added.values()):
            raise InputError(f"the tokenizer cannot spell {text!r} without its special token, so text could inject it")
    return plain
