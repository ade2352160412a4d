"""`sandboxrl run` from end to end: a real server, a real sandbox, a person's files in, artifacts out."""

import asyncio
import json
import threading

from sandboxrl.launch.__main__ import main
from tests.envs.server import Server, error, send
from tests.rl.evaluation.test_evaluate import needs_bubblewrap


def completion(command=None):
    """A reply that calls bash, or finish."""
    name, arguments = ("bash", {"command": command}) if command else ("finish", {})
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return send({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage})


class Served:
    """A `Server` in a thread of its own, so that `main` can run its own loop."""

    def __init__(self, *behaviours):
        self.behaviours = [send({"data": [{"id": "m"}]}), *behaviours]  # the list of models is asked for first

    def __enter__(self):
        ready = threading.Event()

        async def serve():
            self._stop = asyncio.Event()
            async with Server(*self.behaviours) as self.server:
                self.loop = asyncio.get_running_loop()
                ready.set()
                await self._stop.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self.server

    def __exit__(self, *error):
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


def run(server, out, *words):
    line = ["run", "--prompt", "Make a poster", "--output", str(out), "--endpoint", server.url, "--model", "m"]
    return main([*line, *words])


KINDS = ("map.html", "poster.svg", "poster.png", "video.mp4", "composition.mid", "preview.wav", "a/b/sheet_music.md")
ARTIFACTS = r"""
cp /testbed/input/event.json output/event.json
python3 - <<'PY'
import os
KINDS = %s
os.chdir('/testbed/output')
os.makedirs('a/b', exist_ok=True)
blob = bytes(range(256)) * 5000
for name in KINDS:
    open(name, 'wb').write(name.encode() + blob)
open('new\nline "quote" \x1b[31m.txt', 'w').write('x')
open('empty', 'w')
os.symlink('/etc/passwd', 'link')
os.symlink('/etc', 'folder')
os.mkfifo('pipe')
open('tool.sh', 'w').write('#!/bin/sh'); os.chmod('tool.sh', 0o4777)
PY
printf 'A poster.' > answer.txt
"""


def test_files_go_in_and_every_kind_of_artifact_comes_out_intact_and_safely(tmp_path, capsys):
    needs_bubblewrap()
    given = tmp_path / "given"
    (given / "sub").mkdir(parents=True)
    (given / "event.json").write_bytes(b'{"title": "\xff AGI"}')
    (given / "sub" / "b c.txt").write_text("x")
    with Served(completion("ls -R input"), completion(ARTIFACTS % (KINDS,)), completion()) as server:
        assert run(server, tmp_path / "out", "--input", str(given)) == 0
    files = tmp_path / "out" / "files"
    blob = bytes(range(256)) * 5000
    for name in KINDS:
        assert (files / name).read_bytes() == name.encode() + blob
    assert (files / "event.json").read_bytes() == b'{"title": "\xff AGI"}'
    assert (files / 'new\nline "quote" \x1b[31m.txt').read_text() == "x" and (files / "empty").read_bytes() == b""
    assert not any((files / name).exists() or (files / name).is_symlink() for name in ("link", "folder", "pipe"))
    assert not (files / ".keep").exists()
    assert (files / "tool.sh").stat().st_mode & 0o7111 == 0
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err and "answer: A poster." in told.out
    assert "b c.txt" in told.err and "'link': not a regular file" in told.err
    (line,) = (tmp_path / "out" / "trajectory.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert kept["stop"] == "finished" and len(kept["turns"]) == 3 and kept["num_prompt"] == 100
    assert main(["view", str(tmp_path / "out")]) == 0


def test_a_run_that_does_not_finish_keeps_what_there_is_and_says_so(tmp_path, capsys):
    needs_bubblewrap()
    with Served(completion("echo half > output/half.txt")) as server:
        assert run(server, tmp_path / "out", "--max-turns", "2", "--quiet") == 1
    assert (tmp_path / "out" / "files" / "half.txt").read_text() == "half\n"
    assert "not finished: max_turns" in capsys.readouterr().err


def test_what_was_made_is_kept_when_the_server_is_lost(tmp_path, capsys):
    needs_bubblewrap()
    with Served(completion("echo half > output/half.txt"), error(401)) as server:
        assert run(server, tmp_path / "out", "--quiet") == 1
    assert (tmp_path / "out" / "files" / "half.txt").read_text() == "half\n"
    assert "not finished: engine_lost" in capsys.readouterr().err


def test_wrong_input_is_one_clear_line(tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("x")
    out = ["--output", str(tmp_path / "new")]
    cases = (
        (["--prompt", " ", *out, "--model", "m"], "--prompt is empty"),
        (["--prompt", "@/nowhere", *out, "--model", "m"], "/nowhere"),
        (["--prompt", "p", "--output", str(full), "--model", "m"], "not an empty folder"),
        (["--prompt", "p", *out, "--model", "m", "--input", str(tmp_path / "none")], "no such folder"),
        (["--prompt", "p", *out, "--model", "/no/folder"], "neither a model folder"),
        (["--prompt", "p", *out, "--model", "m", "--endpoint", "http://127.0.0.1:9/v1"], "does not answer"),
    )
    for words, told in cases:
        assert main(["run", *words]) == 2
        assert told in capsys.readouterr().err


def test_inputs_that_no_sandbox_can_hold_are_refused_before_anything_starts(tmp_path, capsys):
    given = tmp_path / "given"
    given.mkdir()
    with (given / "big.bin").open("wb") as file:
        file.truncate(1 << 30)
    words = ["--prompt", "p", "--model", "m", "--output", str(tmp_path / "out"), "--input", str(given)]
    assert main(["run", *words]) == 2
    assert "MiB" in capsys.readouterr().err
