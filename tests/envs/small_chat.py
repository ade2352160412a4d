"""Chat formats to test with: a small BPE tokenizer trained here, with templates of Qwen3's shape, and the real one.

`SANDBOXRL_REAL_DATA` names a folder with `qwen3_tokenizer/` and `chat_templates/`; without it the real one is skipped.
"""

import copy
import functools
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sandboxrl.envs.policy.chat import ChatFormat, load_tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# `<tool` begins like others and is no token of Qwen3's: the longest must win
MARKUP = ("<tool", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

TURNS = """\
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.previtem is not defined or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.nextitem is not defined or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif not (loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + CONTENT + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

SYSTEM = """\
{%- if tools or messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else '') }}
{%- if tools %}{{ '\\n\\nTOOLS' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ HOW }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
"""

HERMES = """'\\nCall: <tool_call>\\n{"name": NAME, "arguments": {}}\\n</tool_call>'"""
CODER = (
    """'\\nCall: <tool_call>\\n<function=NAME>\\n<parameter=KEY>\\nVALUE\\n</parameter>\\n</function>\\n</tool_call>'"""
)
FORGETS = "(message.content.split('</think>')[-1] if message.role == 'assistant' else message.content)"


def template(how: str = HERMES, content: str = "message.content") -> str:
    return SYSTEM.replace("HOW", how) + TURNS.replace("CONTENT", content)


def small_tokenizer(chat_template: str) -> PreTrainedTokenizerFast:
    """About 600 tokens: bytes, single digits and a few merges, NFC like Qwen3's."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    corpus = ["the answer is in the documents of the user\n\n", '{"name": "bash", "arguments": {"command": "ls"}}\n']
    backend.train_from_iterator(corpus * 20, trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = chat_template
    return tokenizer


def real_tokenizer(template_name: str) -> Any:
    folder = os.environ.get("SANDBOXRL_REAL_DATA")
    if not folder:
        pytest.skip("SANDBOXRL_REAL_DATA names no folder with the real tokenizer")
    tokenizer = copy.copy(_loaded(Path(folder) / "qwen3_tokenizer"))
    tokenizer.chat_template = (Path(folder) / "chat_templates" / template_name).read_text()
    return tokenizer


@functools.cache
def _loaded(folder: Path) -> Any:
    return load_tokenizer(folder)


FORMATS = ("small hermes", "small qwen3_coder", "real hermes", "real qwen3_coder")


@functools.cache
def chat_format(name: str) -> ChatFormat:
    """One of FORMATS, made once."""
    return ChatFormat(tokenizer_of(name))


@functools.cache
def tokenizer_of(name: str) -> Any:
    size, kind = name.split()
    if size == "small":
        return small_tokenizer(template(HERMES if kind == "hermes" else CODER))
    return real_tokenizer("trl_qwen3_instruct_2507.jinja" if kind == "hermes" else "qwen3_coder.jinja")
