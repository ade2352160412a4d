"""Tools in a real sandbox: every call is answered, wrong ones exactly, and what is shown is short and harmless."""

import asyncio
import json

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.policy.scripted import MemorySandbox
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, SandboxConfig, SandboxDied
from sandboxrl.envs.tools.display import clip, terminal_text
from sandboxrl.envs.tools.tool_set import TOOL_SETS, tool_set
from sandboxrl.envs.trajectory import Observation, ToolCall

PAPER, REFERENCE, COMPACT = (tool_set(name) for name in ("paper", "reference", "compact"))
BASH = {"paper": "bash", "reference": "execute_bash", "compact": "bash"}
FINISH = {"paper": "finish", "reference": "submit", "compact": "finish"}


def answers(*pairs, timeout_s: float = 10.0) -> list[Observation]:
    """Run (tool set, call) pairs one after the other in one fresh bubblewrap sandbox."""

    async def run():
        backend = open_backend(SandboxConfig())
        try:
            box = await backend.start()
            try:
                return [await tools.run(call, box, timeout_s) for tools, call in pairs]
            finally:
                await box.close()
        finally:
            await backend.close()

    try:
        return asyncio.run(run())
    except BackendUnavailable as error:
        pytest.skip(str(error))


def bash(tools, command: str) -> Observation:
    return answers((tools, ToolCall(BASH[tools.name], {"command": command}, "id")))[0]


def wrong(tools, name: str, arguments: dict, error: str = "") -> str:
    call = ToolCall(name, arguments, "id", error)
    observation = asyncio.run(tools.run(call, MemorySandbox({"f": b"x\n"}), 3.0))
    assert (observation.is_error, observation.call_id, observation.name) == (True, "id", name)
    return observation.text


def test_names_schemas_and_order():
    def names(tools):
        return [schema["function"]["name"] for schema in tools.schemas()]

    assert names(PAPER) == names(COMPACT) == ["bash", "file_editor", "finish"]
    assert names(REFERENCE) == ["str_replace_editor", "execute_bash", "submit"]
    for tools in TOOL_SETS.values():
        for schema in tools.schemas():
            parameters = schema["function"]["parameters"]
            assert schema["type"] == "function" and parameters["type"] == "object"
            assert set(parameters["required"]) <= set(parameters["properties"])
    assert len(json.dumps(COMPACT.schemas())) < len(json.dumps(PAPER.schemas())) / 2
    assert "description" not in json.dumps(COMPACT.schemas())
    PAPER.schemas()[0]["function"]["name"] = "changed"
    assert names(PAPER)[0] == "bash"


def test_an_unknown_tool_set_names_the_nearest():
    with pytest.raises(InputError, match="unknown tool set 'papr'; did you mean 'paper'"):
        tool_set("papr")


WRONG = [
    ("bsh", {}, "Error: unknown tool 'bsh'; did you mean 'bash'?"),
    ("", {}, "Error: unknown tool ''; valid: bash, file_editor, finish"),
    ("execute_bash", {"command": "ls"}, "Error: unknown tool 'execute_bash'"),
    ("bash", {}, "Error: bash needs the argument 'command'"),
    ("bash", {"command": None}, "Error: bash needs the argument 'command'"),
    ("bash", {"comand": "ls"}, "Error: bash has no argument 'comand'; did you mean 'command'?"),
    ("bash", {"command": ["ls"]}, "Error: bash: the argument 'command' must be text, not ['ls']"),
    ("bash", {"command": " \n"}, "Error: the command is empty"),
    ("bash", {"command": "a\0b"}, "Error: the command holds a NUL character"),
    ("file_editor", {"command": "view"}, "Error: file_editor needs the argument 'path'"),
    (
        "file_editor",
        {"command": "delete", "path": "f"},
        "one of view, create, str_replace, insert, not 'delete'",
    ),
    (
        "file_editor",
        {"command": "insert", "path": "f", "insert_line": "1"},
        "must be a whole number, not '1'",
    ),
    ("file_editor", {"command": "insert", "path": "f", "insert_line": True}, "must be a whole number, not True"),
    ("file_editor", {"command": "view", "path": "f", "view_range": [1, "2"]}, "must be a list of whole numbers"),
    ("file_editor", {"command": "view", "path": "f", "view_range": 1}, "must be a list of whole numbers, not 1"),
    ("file_editor", {"command": "view", "path": "g"}, "Error: /testbed/g does not exist"),
    ("finish", {"answer": "B"}, "Error: finish has no argument 'answer'; it takes none"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), WRONG)
def test_a_wrong_call_is_told_what_was_wrong(name, arguments, message):
    assert message in wrong(PAPER, name, arguments)


def test_a_call_that_could_not_be_parsed_is_told_so():
    assert wrong(PAPER, "bash", {}, "the tool call is not valid JSON: x") == "Error: the tool call is not valid JSON: x"
    assert wrong(PAPER, "", {}, "no name") == "Error: no name"


def test_a_wrong_value_is_quoted_but_not_at_length():
    assert len(wrong(PAPER, "bash", {"command": ["x" * 10_000]})) < 200


def test_only_a_right_finish_ends_the_task():
    for tools, text in ((PAPER, "Finished."), (REFERENCE, "<<< Finished >>>"), (COMPACT, "Finished.")):
        observation = asyncio.run(tools.run(ToolCall(FINISH[tools.name], {}, "id"), MemorySandbox(), 3.0))
        assert observation.finished and not observation.is_error and observation.text == text
    for call in (ToolCall("finish", {"x": 1}), ToolCall("finish", {}, "", "broken")):
        assert not asyncio.run(PAPER.run(call, MemorySandbox(), 3.0)).finished


def test_a_sandbox_that_dies_is_not_the_models_business():
    class Dead(MemorySandbox):
        async def exec(self, *arguments, **options):
            raise SandboxDied("gone")

        async def read(self, *arguments, **options):
            raise SandboxDied("gone")

    for call in (
        ToolCall("bash", {"command": "ls"}),
        ToolCall("file_editor", {"command": "view", "path": "x"}),
        ToolCall("file_editor", {"command": "insert", "path": "x", "insert_line": 0, "new_str": "x"}),
    ):
        with pytest.raises(SandboxDied):
            asyncio.run(PAPER.run(call, Dead(), 3.0))


def test_bash_tells_exit_code_and_both_streams():
    command = "echo out; echo err >&2; exit 3"
    observation = bash(PAPER, command)
    assert observation.text == "Exit code: 3\n[stdout]\nout\n[stderr]\nerr"
    assert (observation.exit_code, observation.is_error, observation.call_id) == (3, False, "id")
    assert bash(PAPER, "true").text == "Exit code: 0\n(no output)"
    assert bash(PAPER, "kill -9 $$").text == "Exit code: 137 (signal 9)\n(no output)"
    assert bash(COMPACT, command).text == "out\nerr\n[exit code 3]"
    assert bash(COMPACT, "true").text == "(no output)"


def test_the_released_observation_format():
    command = "echo out; echo err >&2; exit 3"
    head = "Execution output of \\[execute_bash]:\n\\[STDOUT]\n"
    assert bash(REFERENCE, command).text == f"Exit code: Error: Exit code 3\n{head}out\n\n\\[STDERR]\nerr\n"
    assert bash(REFERENCE, "true").text == f"Exit code: 0\n{head}"
    assert bash(REFERENCE, "seq 3").text == f"Exit code: 0\n{head}1\n2\n3\n"
    shown = bash(REFERENCE, "seq 100").text
    lines = [str(i) for i in range(1, 101)]
    note = ["-" * 50, "<Observation truncated in middle for saving context>", "-" * 50]
    assert shown == f"Exit code: 0\n{head}" + "\n".join(lines[:40] + note + lines[60:])
    view = ToolCall("str_replace_editor", {"command": "view", "path": "nope"})
    assert answers((REFERENCE, view))[0].text.startswith("Execution output of \\[str_replace_editor]:\nError: ")


def test_a_command_that_takes_too_long_shows_what_it_printed():
    said = {"command": "echo early; sleep 60"}
    paper, reference, compact = answers(
        *[(tools, ToolCall(BASH[tools.name], said)) for tools in (PAPER, REFERENCE, COMPACT)],
        timeout_s=1.0,
    )
    assert paper.timed_out and reference.timed_out
    assert paper.text == "Exit code: none\n[killed after 1 s; this is what it printed until then]\n[stdout]\nearly"
    assert reference.text.startswith("Exit code: -1\n") and reference.text.endswith(
        "took too long to execute (>1s)\nearly\n"
    )
    assert compact.text == "early\n[killed after 1 s; this is what it printed until then]"


def test_a_background_process_is_mentioned():
    assert bash(PAPER, "sleep 60 & echo x").text == (
        "Exit code: 0\n[a background process is still running]\n[stdout]\nx"
    )


def test_floods_are_cut_by_lines_and_by_characters():
    text = bash(PAPER, "seq 81").text
    assert text == "\n".join(
        ["Exit code: 0\n[stdout]", *map(str, range(1, 41)), "[... 1 lines left out ...]", *map(str, range(42, 82))]
    )
    assert "left out" not in bash(PAPER, "seq 80").text
    flood = bash(PAPER, "head -c 200000 /dev/zero | tr '\\0' x; head -c 200000 /dev/zero | tr '\\0' y >&2").text
    assert len(flood) < 2 * 16_000 + 300 and "characters left out" in flood
    assert len(bash(COMPACT, "head -c 200000 /dev/zero | tr '\\0' x").text) < 2_100


def test_control_sequences_are_harmless():
    raw = b"\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b(Bok\r\n10%\r20%\r\n\x08\x00\x9b\xff\xc2\x9b \t\xe2\x82\xac\n"
    text = terminal_text(raw)
    assert text == "red ok\n10%\n20%\n\\x08\\x00\ufffd\ufffd\\x9b \t€\n"
    assert terminal_text(b"a\x1b") == "a\\x1b"
    assert terminal_text(b"\x1b]8;;unclosed\nnext") == "\nnext"


def test_clip_keeps_both_ends():
    assert clip("a\nb\nc\n", 3, 100) == "a\nb\nc\n"
    assert clip("a\nb\nc\nd\n", 2, 100) == "a\n[... 2 lines left out ...]\nd"
    assert clip("abcdefgh", 5, 4) == "ab\n[... 4 characters left out ...]\ngh"


def test_the_editor_in_a_real_sandbox():
    def use(command, path, **arguments):
        return PAPER, ToolCall("file_editor", {"command": command, "path": path, **arguments})

    def run(command):
        return PAPER, ToolCall("bash", {"command": command})

    odd = 'it\'s $(touch pwned) "é".txt'
    texts = [
        one.text
        for one in answers(
            use("create", odd, file_text="a\tb\n'q' $x\n"),
            run("printf 'a\\tb\\n%s\\n' \"'q' \\$x\" | cmp - it*; echo $?; ls | wc -l"),
            use("str_replace", odd, old_str="'q'", new_str="'r'"),
            run("tail -c 7 it*; mkdir -p 'd 1/e' .hidden; ln -s / link; mkfifo pipe"),
            use("create", "d 1/x\ny", file_text="x" * (2 << 20)),
            use("view", "."),
            use("view", "d 1"),
            use("view", "d 1/e"),
            use("view", "link"),
            use("view", "pipe"),
            use("view", "d 1", view_range=[1, 2]),
            use("create", "d 1", file_text="x"),
            use("create", "/etc/x", file_text="x"),
            use("view", "/etc/passwd", view_range=[1, 1]),
        )
    ]
    assert texts[1] == "Exit code: 0\n[stdout]\n0\n1"
    assert texts[3] == "Exit code: 0\n[stdout]\n'r' $x"
    assert texts[5].split("\n")[1:] == [
        "/testbed/d 1/",
        "/testbed/d 1/e/",
        "/testbed/d 1/x\\ny",
        f"/testbed/{odd}",
        "/testbed/link",
        "/testbed/pipe",
    ]
    assert texts[6].split("\n")[1:] == ["/testbed/d 1/e/", "/testbed/d 1/x\\ny"]
    assert texts[7] == "(empty directory: /testbed/d 1/e)"
    assert "is a symbolic link" in texts[8]
    assert texts[9] == "Error: /testbed/pipe is not a regular file"
    assert texts[10] == "Error: /testbed/d 1 is a directory; view_range is for files"
    assert texts[11] == "Error: /testbed/d 1 is a directory"
    assert "read-only file system" in texts[12]
    assert texts[13].endswith("     1\troot:x:0:0:root:/root:/bin/bash")


def test_a_shell_that_stays_is_answered_polled_and_interrupted():
    stays = tool_set("paper", persist_shell=True)

    def call(**arguments) -> tuple:
        return stays, ToolCall("bash", arguments, "id")

    told = answers(
        call(command="cd /tmp; x=1; f() { echo f; return 3; }"),
        call(command="pwd; echo $x; f"),
        call(command="read -p 'name? ' name; echo hello $name"),
        call(command="echo another"),
        call(command="you", is_input=True),
        call(command="more", is_input=True),
        call(command="sleep 60", timeout=0.2),
        call(command="C-c"),
        call(command="(sleep 0.3; echo later) &"),
        call(command=""),
        call(command="exit 4"),
        call(command="sleep 60"),
        timeout_s=1.0,
    )
    running = "[still running; wait with an empty command, answer with is_input, interrupt with C-c]"
    assert [one.text for one in told[:2]] == ["[exit code 0]", "/tmp\n1\nf\n[exit code 3]"]
    assert told[2].text == "name? \n[waits for input; answer with is_input, interrupt with C-c]"
    assert told[3].is_error and told[3].text.startswith("Error: a command is still running, so this one was not run")
    assert told[4].text == "hello you\n[exit code 0]" and told[5].text == (
        "Error: no command is running that could take input"
    )
    assert (told[6].text, told[6].exit_code) == (running, None) and told[7].exit_code == 130
    assert told[9].text.startswith("later\n") and told[10].text == (
        "[exit code 4]\n[the shell has ended; the next command starts a new one]"
    )
    assert told[11].timed_out and told[11].text.endswith("[killed after 1 s; this is what it printed until then]")


def test_only_a_chosen_shell_can_stay():
    assert tool_set("reference", ["execute_bash", "submit"], persist_shell=True).tools[0].name == "execute_bash"
    with pytest.raises(InputError, match="sandbox.persist_shell: tools must hold bash"):
        tool_set("paper", ["file_editor", "finish"], persist_shell=True)
    assert TOOL_SETS["paper"] == tool_set("paper")
