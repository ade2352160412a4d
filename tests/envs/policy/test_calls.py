"""The tool-call parser: each format's cases, and that a bad call never hides another."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrl.data.errors import InputError
from sandboxrl.envs.policy.calls import FORMATS, parse, read_arguments, write
from sandboxrl.envs.trajectory import ToolCall

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "edit",
            "parameters": {
                "type": "object",
                "properties": {
                    "command": {"type": "string"},
                    "line": {"type": "integer"},
                    "ratio": {"type": "number"},
                    "deep": {"type": "boolean"},
                    "lines": {"type": "array"},
                },
            },
        },
    }
]


def hermes(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def coder(body: str) -> str:
    return f"<tool_call>\n<function=edit>\n{body}</function>\n</tool_call>"


def one(text: str, call_format: str) -> ToolCall:
    _, calls = parse(text, call_format, TOOLS)
    assert len(calls) == 1
    return calls[0]


GOOD = [
    ('{"name": "bash", "arguments": {"command": "ls"}}', {"command": "ls"}),
    ('{"arguments": {"command": "ls"}, "name": "bash"}', {"command": "ls"}),
    ('  {"name": "bash", "arguments": {}}  ', {}),
    ('{"name": "bash"}', {}),
    ('{"name": "bash", "arguments": null}', {}),
    ('{"name": "bash", "arguments": ""}', {}),
    ('{"name": "bash", "arguments": "{\\"command\\": \\"ls\\"}"}', {"command": "ls"}),
    ('{"name": "bash", "arguments": {"command": "a \\"b\\"\\nc"}}', {"command": 'a "b"\nc'}),
    (
        '{"name": "bash", "arguments": {"command": "echo </tool_call> <tool_call>"}}',
        {"command": "echo </tool_call> <tool_call>"},
    ),
    ('{"name": "bash", "arguments": {"command": "héé \\ud83d\\ude00"}}', {"command": "héé 😀"}),
]


@pytest.mark.parametrize(("body", "arguments"), GOOD)
def test_hermes_reads_what_is_json(body, arguments):
    assert one(hermes(body), "hermes") == ToolCall("bash", arguments, "call_0")


BAD = [
    ('{"name": "bash", "arguments": {"command": "ls}}', "", "not valid JSON"),
    ('{"name": "bash" "arguments": {}}', "", "at character 16"),
    (
        '{"name": "bash", "arguments": {"command": "a\nb"}}',
        "",
        "(a newline in a string is written \\n) at char",
    ),
    ("", "", "the call is empty"),
    ("[1, 2]", "", "must be a JSON object, not a list"),
    ("true", "", "must be a JSON object, not a boolean"),
    ("{}", "", 'has no "name"'),
    ('{"name": 3}', "", 'has no "name"'),
    ('{"name": "", "arguments": {}}', "", 'has no "name"'),
    ('{"name": "bash", "arguments": [1]}', "bash", "arguments must be a JSON object, not a list"),
    ('{"name": "bash", "arguments": "ls"}', "bash", "arguments are not valid JSON: Expecting value at character 0"),
    ('{"name": "bash", "arguments": "[]"}', "bash", "not a list"),
    ('{"name": "bash", "command": "ls"}', "bash", "no \"arguments\" object; found 'command' instead"),
    ('{"name": "bash", "arguments": {}} and more', "bash", "no </tool_call>: unexpected text"),
    ('{"name": "bash", "arguments": {"a": 1, "a": 2}}', "", "the key 'a' is given twice"),
    ('{"name": "bash", "arguments": {"a": NaN}}', "", "NaN is not JSON"),
    ('{"name": "bash", "arguments": {"a": "\\ud800"}}', "bash", "unpaired surrogate '\\ud800'"),
    ('{"name": "b\\udc00sh", "arguments": {}}', "b?sh", "unpaired surrogate"),
    ('{"name": "bash", "arguments": ' + "[" * 100_000 + "}", "", "nested too deeply"),
    ('{"name": "bash", "arguments": {"a": ' + "1" * 5000 + "}}", "", "Exceeds the limit"),
]


@pytest.mark.parametrize(("body", "name", "error"), BAD)
def test_hermes_says_what_is_wrong(body, name, error):
    call = one(hermes(body), "hermes")
    assert (call.name, call.arguments) == (name, {})
    assert error in call.error


def test_a_call_cut_at_the_length_limit_is_an_error():
    assert "no </tool_call>" in one('<tool_call>\n{"name": "bash", "arguments": {}}', "hermes").error
    assert "not valid JSON" in one('<tool_call>\n{"name": "bash", "argu', "hermes").error
    assert "not valid JSON" in one("<tool_call>", "hermes").error
    for text in ("<tool_call>", "<tool_call>\n<func", "<tool_call>\n<function=edit>\n<parameter=command>\nls"):
        assert one(text, "qwen3_coder").error
    assert "no </function>" in one(coder("<parameter=command>\nls\n</parameter>\n")[:-24], "qwen3_coder").error
    assert "no </tool_call>" in one(coder("<parameter=command>\nls\n</parameter>\n")[:-12], "qwen3_coder").error


VALUES = [
    ("<parameter=command>\nls\n</parameter>\n", {"command": "ls"}),
    ("<parameter=command>ls</parameter>", {"command": "ls"}),
    ("<parameter=command>\n\n  ls\n\n</parameter>\n", {"command": "\n  ls\n"}),
    ("<parameter=command>\na </parameter> b\n</parameter>\n", {"command": "a </parameter> b"}),
    ("<parameter=command>\ncat <<E\n</tool_call>\nE\n</parameter>\n", {"command": "cat <<E\n</tool_call>\nE"}),
    ("<parameter=command>\n</function> </tool_call>\n</parameter>\n", {"command": "</function> </tool_call>"}),
    ("<parameter=line>\n7\n</parameter>\n", {"line": 7}),
    ("<parameter=line>\nseven\n</parameter>\n", {"line": "seven"}),
    ("<parameter=ratio>\n1e-3\n</parameter>\n", {"ratio": 1e-3}),
    (
        "<parameter=deep>\nTrue\n</parameter>\n<parameter=lines>\n[1, -1]\n</parameter>\n",
        {"deep": True, "lines": [1, -1]},
    ),
    ("<parameter=deep>\nfalse\n</parameter>\n", {"deep": False}),
    ("<parameter=command>\n7\n</parameter>\n<parameter=new>\n7\n</parameter>\n", {"command": "7", "new": "7"}),
    ("", {}),
]


@pytest.mark.parametrize(("body", "arguments"), VALUES)
def test_coder_values_are_raw_text_cast_by_the_schema(body, arguments):
    assert one(coder(body), "qwen3_coder") == ToolCall("edit", arguments, "call_0")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<tool_call>\nedit\n</tool_call>", "expected <function=NAME> after <tool_call>, found 'edit"),
        ("<tool_call>\n<function=>\n</function>\n</tool_call>", "<function=> has no name"),
        (coder("<parameter=command>\nls\n"), "parameter 'command' has no </parameter>"),
        (coder("<parameter=line>1</parameter><parameter=line>2</parameter>"), "parameter 'line' is given twice"),
        (coder("ls"), "no </function>: found 'ls"),
    ],
)
def test_coder_says_what_is_wrong(text, error):
    assert error in one(text, "qwen3_coder").error


ATTEMPTS = {
    "hermes": [
        hermes('{"name": "bash", "arguments": {"command": "ls}}'),
        hermes("7"),
        '<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}',
        "<tool_call>",
        hermes('{"name": 1}'),
    ],
    "qwen3_coder": [
        coder("<parameter=command>\nls\n"),
        "<tool_call>\n<function=edit>\n<parameter=command>\nls\n",
        "<tool_call>\n<function=edit>\n<parameter=command>\nls\n</parameter>\n",
        "<tool_call>\n<function=edit>\n<parameter=command>\nls\n</parameter>\n</function>\n",
        "<tool_call>",
        "<tool_call>\nedit\n</tool_call>",
    ],
}


@pytest.mark.parametrize("call_format", FORMATS)
def test_a_bad_call_hides_no_other(call_format):
    good = write("edit", {"command": "pwd"}, call_format)
    for bad in ATTEMPTS[call_format]:
        said, calls = parse(f"before {good} between {bad}\n{good} after", call_format, TOOLS)
        assert [bool(call.error) for call in calls] == [False, True, False], bad
        assert calls[0].arguments == calls[2].arguments == {"command": "pwd"}
        assert [call.id for call in calls] == ["call_0", "call_1", "call_2"]
        assert said.startswith("before") and said.endswith("after")


@pytest.mark.parametrize("call_format", FORMATS)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.text())
def test_write_and_parse_are_inverse(call_format, command, said):
    if call_format == "qwen3_coder":
        command = command.replace("<", "(")  # a raw value may not spell the markup
    said = said.replace("<tool_call>", "")
    text = write("edit", {"command": command}, call_format)
    assert parse(said + text, call_format, TOOLS) == (said.strip(), (ToolCall("edit", {"command": command}, "call_0"),))


PIECES = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<function=edit>",
        "</function>",
        "<parameter=line>",
        "</parameter>",
        "\n",
        " ",
        "1",
    ]
    + ['{"name": "edit", ', '"arguments": ', "{}", "}", '"', "\\ud800", "[", "é", "null", "<function=>", "<parameter=>"]
)


@pytest.mark.parametrize("call_format", FORMATS)
@given(st.lists(PIECES, max_size=40))
def test_anything_parses_into_calls_that_are_json(call_format, pieces):
    text = "".join(pieces)
    said, calls = parse(text, call_format, TOOLS)
    assert len(calls) <= text.count("<tool_call>")
    assert bool(calls) == ("<tool_call>" in text)
    for call in calls:
        assert not (call.error and call.arguments)
        json.dumps([call.name, call.arguments, call.error], ensure_ascii=False).encode()


def test_arguments_of_an_endpoint():
    assert read_arguments('{"a": 1}') == read_arguments('"{\\"a\\": 1}"') == {"a": 1}
    assert read_arguments("") == read_arguments(None) == read_arguments("null") == {}
    for wrong in ("{", "[]", 3, True, '"x"'):
        with pytest.raises(ValueError, match="arguments"):
            read_arguments(wrong)


def test_an_unknown_format_is_an_error():
    with pytest.raises(InputError, match="did you mean 'hermes'"):
        parse("", "herms")
