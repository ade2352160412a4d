"""The editor: what an edit does not name stays as it was, byte for byte, and every refusal says why."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrl.envs.policy.scripted import MemorySandbox
from sandboxrl.envs.tools.editor import Wording, edit
from sandboxrl.envs.tools.tool import ToolRefused

PATH = "/testbed/f"


def run(box: MemorySandbox, command: str, path: str = "f", wording: Wording | None = None, **arguments) -> str:
    return asyncio.run(edit({"command": command, "path": path, **arguments}, box, 5.0, wording or Wording()))


def refused(box: MemorySandbox, command: str, path: str = "f", **arguments) -> str:
    before = dict(box.files)
    with pytest.raises(ToolRefused) as raised:
        run(box, command, path, **arguments)
    assert box.files == before
    return str(raised.value)


def after(data: bytes, command: str, **arguments) -> bytes:
    box = MemorySandbox({PATH: data})
    run(box, command, **arguments)
    return box.files[PATH]


REPLACED = [
    (b"a\tb\n", "b", "c", b"a\tc\n"),
    (b"a\nb", "b", "c\n", b"a\nc\n"),
    (b"\xff\xfea b\x00", "a b", "", b"\xff\xfe\x00"),
    (b"one\r\ntwo\r\n", "one\ntwo", "1\n2\n3", b"1\r\n2\r\n3\r\n"),
    (b"one\r\ntwo\r\n", "one\r\n", "1\n", b"1\r\ntwo\r\n"),
    (b"one\r\ntwo\n", "one", "1\n1", b"1\n1\r\ntwo\n"),
    (b"aXb", "X", "\\1$&'\"", b"a\\1$&'\"b"),
    ("e\u0301 \u2028 é\n".encode(), "é", "e", "e\u0301 \u2028 e\n".encode()),
    (b"\x1b[31mred\x0c\n", "red", "blue", b"\x1b[31mblue\x0c\n"),
    (b"x" * (2 << 20) + b"END", "END", "end", b"x" * (2 << 20) + b"end"),
]


@pytest.mark.parametrize(("data", "old", "new", "expected"), REPLACED)
def test_str_replace_changes_nothing_else(data, old, new, expected):
    assert after(data, "str_replace", old_str=old, new_str=new) == expected


def test_new_str_may_be_left_out_to_delete():
    assert after(b"a b c", "str_replace", old_str=" b") == b"a c"
    assert run(MemorySandbox({PATH: b"a"}), "str_replace", old_str="a") == f"Edited {PATH}: it is empty now."


@given(st.binary(max_size=60), st.text(max_size=5), st.binary(max_size=60))
def test_whatever_surrounds_a_replaced_text_survives(before, new, behind):
    needle = "[needle\u20ac]"
    data = before + needle.encode() + behind
    if data.count(b"\r\n") == data.count(b"\n") > 0:
        new = new.replace("\n", "")
    new = new.encode("utf-8", "ignore").decode()
    assert after(data, "str_replace", old_str=needle, new_str=new) == before + new.encode() + behind


INSERTED = [
    (b"a\nb\n", 0, "x", b"x\na\nb\n"),
    (b"a\nb\n", 1, "x\n", b"a\nx\nb\n"),
    (b"a\nb\n", 2, "x\ny", b"a\nb\nx\ny\n"),
    (b"a\nb", 2, "x", b"a\nb\nx"),
    (b"a\nb", 1, "x", b"a\nx\nb"),
    (b"a\r\nb\r\n", 1, "x\ny", b"a\r\nx\r\ny\r\nb\r\n"),
    (b"a\r\nb", 2, "x", b"a\r\nb\r\nx"),
    (b"", 0, "x", b"x\n"),
    (b"a\n", 1, "\n", b"a\n\n"),
    (b"\xff\n\ta", 1, "\t\u00e9", b"\xff\n\t\xc3\xa9\n\ta"),
]


@pytest.mark.parametrize(("data", "line", "new", "expected"), INSERTED)
def test_insert_adds_whole_lines(data, line, new, expected):
    assert after(data, "insert", insert_line=line, new_str=new) == expected


@pytest.mark.parametrize("text", ["", "no newline", "a\r\nb\n", "\t'quotes' $(x) `y` \\n\n", "-n", "é\u2028\x1b[0m"])
def test_create_writes_exactly_the_text(text):
    box = MemorySandbox({PATH: b"old"})
    run(box, "create", 'a b/it\'s "$x".txt', file_text=text)
    assert box.files['/testbed/a b/it\'s "$x".txt'] == text.encode()
    run(box, "create", file_text=text)
    assert box.files[PATH] == text.encode()


def test_paths_are_relative_to_testbed_and_without_detours():
    box = MemorySandbox()
    for path in ("a/../g", "./g", "/testbed//g", "//testbed/g"):
        run(box, "create", path, file_text="x")
        assert list(box.files) == ["/testbed/g"]


def test_view_shows_numbered_lines():
    box = MemorySandbox({PATH: b"one\n\ttwo\nthree\n"})
    assert run(box, "view") == f"{PATH}, lines 1 to 3 of 3:\n     1\tone\n     2\t\ttwo\n     3\tthree"
    assert run(box, "view", view_range=[2, 2]) == f"{PATH}, lines 2 to 2 of 3:\n     2\t\ttwo"
    assert run(box, "view", view_range=[2, -1]).endswith("     2\t\ttwo\n     3\tthree")
    assert run(MemorySandbox({PATH: b""}), "view") == f"(empty file: {PATH})"


def test_view_names_what_cannot_be_seen():
    assert run(MemorySandbox({PATH: b"a\r\nb\r\n"}), "view").endswith("     1\ta\n     2\tb\n(lines end in CRLF)")
    assert run(MemorySandbox({PATH: b"a"}), "view").endswith("     1\ta\n(no newline at the end)")
    shown = run(MemorySandbox({PATH: b"\x1b[31m\xff\x07\xc2\x9b\n"}), "view")
    assert shown.endswith("     1\t\\x1b[31m\\xff\\x07\\x9b")


def test_long_files_are_clipped_and_say_so():
    shown = run(MemorySandbox({PATH: b"x" * 100_000}), "view")
    assert len(shown) < 10_200 and "more characters; give a view_range" in shown
    lines = b"".join(b"%d\n" % i for i in range(100_000))
    shown = run(MemorySandbox({PATH: lines}), "view", view_range=[90_001, 90_002])
    assert shown == f"{PATH}, lines 90001 to 90002 of 100000:\n 90001\t90000\n 90002\t90001"


@pytest.mark.parametrize("view_range", [[0, 1], [1, 4], [3, 2], [4, -1], [-1, -1], [1, -2]])
def test_a_view_range_outside_the_file_is_refused(view_range):
    message = refused(MemorySandbox({PATH: b"a\nb\nc\n"}), "view", view_range=view_range)
    assert str(view_range) in message and "has 3 lines" in message


def test_an_edit_shows_the_lines_around_it():
    data = "".join(f"line {i}\n" for i in range(1, 21)).encode()
    said = run(MemorySandbox({PATH: data}), "str_replace", old_str="line 10\n", new_str="ten\nand more\n")
    assert said.startswith(f"Edited {PATH}. Lines 6 to 16 are now:\n     6\tline 6\n")
    assert "    10\tten\n    11\tand more\n    12\tline 11\n" in said
    said = run(MemorySandbox({PATH: data}), "insert", insert_line=20, new_str="last")
    assert said == (
        f"Edited {PATH}. Lines 17 to 21 are now:\n    17\tline 17\n    18\tline 18\n    19\tline 19\n"
        "    20\tline 20\n    21\tlast"
    )


REFUSALS = [
    ("str_replace", {"old_str": "zz"}, "old_str does not occur in /testbed/f; nothing was changed"),
    ("str_replace", {"old_str": "a  b", "new_str": "c"}, "; line 2 differs only in white space"),
    ("str_replace", {"old_str": "x", "new_str": "y"}, "occurs 3 times in /testbed/f, beginning on lines 1, 1, 3"),
    ("str_replace", {"old_str": "", "new_str": "y"}, "old_str is empty"),
    ("str_replace", {"old_str": "x", "new_str": "x"}, "are the same"),
    ("str_replace", {"new_str": "y"}, "str_replace needs the argument 'old_str'"),
    ("insert", {"insert_line": 4, "new_str": "y"}, "invalid insert_line 4: /testbed/f has 3 lines"),
    ("insert", {"insert_line": -1, "new_str": "y"}, "invalid insert_line -1"),
    ("insert", {"insert_line": 0, "new_str": ""}, "new_str is empty"),
    ("insert", {"new_str": "y"}, "insert needs the argument 'insert_line'"),
    ("create", {}, "create needs the argument 'file_text'"),
    ("view", {"view_range": [1]}, "two line numbers"),
]


@pytest.mark.parametrize(("command", "arguments", "message"), REFUSALS)
def test_a_refusal_says_why_and_changes_nothing(command, arguments, message):
    assert message in refused(MemorySandbox({PATH: b"x x\na b\nx\n"}), command, **arguments)


def test_many_occurrences_are_counted_and_the_first_named():
    message = refused(MemorySandbox({PATH: b"x\n" * 30}), "str_replace", old_str="x", new_str="y")
    assert "occurs 30 times" in message and "on lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …" in message


def test_a_file_that_cannot_be_read_is_named():
    box = MemorySandbox({PATH: b"x\0y", "big": b"x" * ((16 << 20) + 1)})
    assert refused(box, "view", "nope") == "/testbed/nope does not exist"
    assert refused(box, "insert", "nope", insert_line=0, new_str="x") == "/testbed/nope does not exist"
    assert refused(box, "view") == f"{PATH} is a binary file of 3 bytes; look at it with a command"
    assert "larger than 16 MiB" in refused(box, "str_replace", "big", old_str="x", new_str="y")
    assert "path must be a file name" in refused(box, "view", "")
    assert "path must be a file name" in refused(box, "view", "a\0b")


@pytest.mark.parametrize(
    ("data", "command", "arguments", "message"),
    [
        (b"\n" * (16 << 20), "view", {}, "is too much to view; give a view_range"),
        (b"\x01" * (16 << 20), "view", {"view_range": [1, 1]}, "is too much to view"),
        (b"a\n" * (8 << 20), "str_replace", {"old_str": "b\n" * 50_000}, "does not occur"),
    ],
)
def test_no_file_holds_up_the_other_trajectories(data, command, arguments, message):
    before = time.process_time()
    assert message in refused(MemorySandbox({PATH: data}), command, **arguments)
    assert time.process_time() - before < 4
