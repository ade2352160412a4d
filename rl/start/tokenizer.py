"""The tokenizer of the starting policy: byte-level BPE with Qwen3's special tokens and a chat template of its form.

Every key and note word of the tiny tasks is one token, the same one wherever it stands, and so is every digit: copying
is then copying of tokens, which is what a tiny model can learn.
"""

import random
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sandboxrl.data.builtin import KEYS, NOTE_WORDS, build
from sandboxrl.envs.policy.chat import ChatFormat
from sandboxrl.rl.start.scripts import Player, play_all

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Added but not special, as in Qwen3: they stay in decoded text."""

PIECES = r"\d|\p{L}+|[^\p{L}\d]+"
"""What one token can be made of: a digit, a word (never the space before it), or a run of anything else."""

CHAT_TEMPLATE = """\
{#- Turns, tools and calls as Qwen3 Instruct-2507 writes them; a tool is shown by its name and argument names only. -#}
{%- set first = messages[0] %}
{%- if tools or first.role == "system" %}
{{- "<|im_start|>system\\n" }}
{%- if first.role == "system" %}{{ first.content }}{% endif %}
{%- if tools %}
{{- "\\n<tools>\\n" }}
{%- for tool in tools %}
{%- set function = tool.function if tool.function is defined else tool %}
{{- function.name + "(" + (function.parameters.properties | default({}) | join(", ")) + ")\\n" }}
{%- endfor %}
{{- '</tools>\\n<tool_call>\\n{"name": NAME, "arguments": {}}\\n</tool_call>' }}
{%- endif %}
{{- "<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}
{%- if loop.first or loop.previtem.role != "tool" %}{{ "<|im_start|>user" }}{% endif %}
{{- "\\n<tool_response>\\n" + message.content + "\\n</tool_response>" }}
{%- if loop.last or loop.nextitem.role != "tool" %}{{ "<|im_end|>\\n" }}{% endif %}
{%- elif message.role == "assistant" %}
{{- "<|im_start|>assistant\\n" + (message.content or "") }}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function if call.function is defined else call %}
{%- if message.content or not loop.first %}{{ "\\n" }}{% endif %}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}
{{- "}\\n</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>\\n" }}
{%- elif not (message.role == "system" and loop.first) %}
{{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}
"""


def taught_texts(seed: int, num_tasks: int) -> list[str]:
    """Whole trajectories that solve training tasks, as text, special tokens and all. They are played with the tokenizer
    before it has learned any merge: it spells anything."""
    spelling = ChatFormat(_wrap(_new_bpe()))
    rng = random.Random(seed)
    players = [Player(spelling, task, "searches", rng) for task in build("tiny", "train", num_tasks, seed)]
    return [spelling.decode(trajectory.tokens.ids.tolist()) for trajectory in play_all(players) if trajectory.tokens]


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train it on scripted trajectories."""
    markers = re.compile("|".join(map(re.escape, SPECIAL + ADDED)))
    corpus = [piece for text in taught_texts(seed, 200) for piece in markers.split(text)]
    corpus += [*KEYS, *NOTE_WORDS] * 200  # bare, and often enough that each becomes one token
    bpe = _new_bpe()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=20,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    return _wrap(bpe)


def _new_bpe() -> Tokenizer:
    """Without merges: one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    return bpe


def _wrap(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    bpe.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
