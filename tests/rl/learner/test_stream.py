"""Weights over TCP: whole or not at all, whoever dies when, and nobody waits for ever for anybody."""

import contextlib
import io
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from sandboxrl.rl.learner import stream
from sandboxrl.rl.learner.stream import Sender, StreamBroken, open_memory, receive
from sandboxrl.rl.learner.weights import Layout, SharedWeights

DATA = random.Random(0).randbytes(9 << 20)


def nobody_gone() -> dict[str, str]:
    return {}


def listening(info: dict[str, Any]) -> tuple[threading.Thread, io.BytesIO, list[StreamBroken]]:
    found, problems = io.BytesIO(), []

    def work() -> None:
        try:
            receive(info, found)
        except StreamBroken as error:
            problems.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, found, problems


def test_every_receiver_gets_every_byte() -> None:
    with Sender(["a", "b", "c"], len(DATA), "127.0.0.1") as sender:
        receivers = [listening(sender.info(name)) for name in "abc"]
        sender.connect(10, nobody_gone)
        for start in range(0, len(DATA), 1 << 20):
            sender.send(memoryview(DATA)[start : start + (1 << 20)])
        assert sender.finish() == {}
        for thread, found, problems in receivers:
            thread.join(10)
            assert not problems and found.getvalue() == DATA


def test_one_that_never_comes_or_has_failed_already_is_left_out() -> None:
    with Sender(["here", "dead", "late"], 3, "127.0.0.1") as sender:
        thread, found, _ = listening(sender.info("here"))
        sender.connect(0.5, lambda: {"dead": "its process is gone"})
        sender.send(memoryview(b"abc"))
        lost = sender.finish()
        thread.join(10)
        late, _, problems = listening(sender.info("late"))
        late.join(10)
    assert found.getvalue() == b"abc" and problems
    assert lost["dead"] == "its process is gone" and "did not ask" in lost["late"] and len(lost) == 2


def test_one_that_takes_nothing_is_dropped_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STALL_S", 0.5)
    with Sender(["good", "stuck"], len(DATA), "127.0.0.1") as sender:
        thread, found, _ = listening(sender.info("good"))
        info = sender.info("stuck")
        with socket.create_connection((info["host"], info["port"])) as stuck:
            stuck.sendall(info["token"].encode())
            sender.connect(10, nobody_gone)
            started = time.monotonic()
            sender.send(memoryview(DATA))
            lost = sender.finish()
            assert time.monotonic() - started < 10
        thread.join(10)
    assert list(lost) == ["stuck"] and found.getvalue() == DATA


def test_a_stranger_gets_nothing_and_holds_up_nobody() -> None:
    with Sender(["a"], 3, "127.0.0.1") as sender:
        info = sender.info("a")
        silent = socket.create_connection((info["host"], info["port"]))
        stranger = socket.create_connection((info["host"], info["port"]))
        stranger.sendall(b"x" * stream.TOKEN_BYTES)
        assert stranger.recv(1) == b""
        thread, found, _ = listening(info)
        sender.connect(5, nobody_gone)
        sender.send(memoryview(b"abc"))
        assert sender.finish() == {}
        thread.join(5)
        silent.close()
        stranger.close()
    assert found.getvalue() == b"abc"
    with pytest.raises(OSError):
        socket.create_connection((info["host"], info["port"]), timeout=1)


@contextlib.contextmanager
def bad_line(info: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """How to reach the sender over a line that makes `abd` of `abc`."""
    with socket.create_server(("127.0.0.1", 0)) as near:

        def carry() -> None:
            ours, _ = near.accept()
            with ours, socket.create_connection((info["host"], info["port"])) as theirs:
                while ready := select.select([ours, theirs], [], [], 5)[0]:
                    for end in ready:
                        if not (data := end.recv(1 << 16)):
                            return
                        (theirs if end is ours else ours).sendall(data.replace(b"abc", b"abd"))

        line = threading.Thread(target=carry)
        line.start()
        yield info | {"port": near.getsockname()[1]}
        line.join(10)


def test_bytes_that_change_on_the_way_are_refused() -> None:
    with Sender(["a"], 3, "127.0.0.1") as sender, bad_line(sender.info("a")) as info:
        thread, _, problems = listening(info)
        sender.connect(5, nobody_gone)
        sender.send(memoryview(b"abc"))
        sender.finish()
        thread.join(5)
    assert "checksum" in str(problems[0])


def test_a_sender_that_dies_in_the_middle_is_an_error_and_not_a_wait() -> None:
    sender = Sender(["a"], 10, "127.0.0.1")
    thread, _, problems = listening(sender.info("a"))
    sender.connect(5, nobody_gone)
    sender.send(memoryview(b"abc"))
    sender.close()
    thread.join(5)
    assert "7 bytes before the end" in str(problems[0])


RECEIVER = """
import json, sys
from sandboxrl.rl.learner.stream import open_memory, receive
for line in sys.stdin:
    file, info = open_memory("x")
    with file:
        receive(json.loads(line), file)
        file.flush()
        print(open(info["path"], "rb").read() == open(sys.argv[1], "rb").read(), flush=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_receivers_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    """25 publications to two processes, one of which is killed at a random moment before, during or after each: the
    other has every byte each time, the dead one is named unless it had all of it, no socket and no thread is left."""
    rng, content = random.Random(seed), tmp_path / "content"
    content.write_bytes(DATA)

    def start() -> subprocess.Popen[str]:
        words = [sys.executable, "-c", RECEIVER, str(content)]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    sockets, threads = num_sockets(), threading.active_count()
    processes = [start(), start()]
    num_lost = 0
    for _ in range(25):
        victim = rng.randrange(2)
        timer = threading.Timer(rng.random() * 0.06, processes[victim].send_signal, [signal.SIGKILL])
        timer.start()
        with Sender(["0", "1"], len(DATA), "127.0.0.1") as sender:
            for index, process in enumerate(processes):
                try:
                    print(json.dumps(sender.info(str(index))), file=process.stdin, flush=True)
                except BrokenPipeError:
                    assert index == victim

            def gone(ends: list[subprocess.Popen[str]] = processes) -> dict[str, str]:
                return {str(i): "gone" for i, process in enumerate(ends) if process.poll() is not None}

            sender.connect(20, gone)
            for begin in range(0, len(DATA), 1 << 20):
                sender.send(memoryview(DATA)[begin : begin + (1 << 20)])
            lost = sender.finish()
        timer.join()
        assert set(lost) <= {str(victim)}, lost
        survivor = processes[1 - victim]
        assert survivor.stdout is not None and survivor.stdout.readline() == "True\n"
        processes[victim].wait(timeout=20)
        num_lost += len(lost)
        for stream_ in (processes[victim].stdin, processes[victim].stdout):
            assert stream_ is not None
            with contextlib.suppress(BrokenPipeError):
                stream_.close()
        processes[victim] = start()
    for process in processes:
        process.communicate(timeout=20)
    assert num_lost > 0
    deadline = time.monotonic() + 15
    while (num_sockets(), threading.active_count()) != (sockets, threads) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (num_sockets(), threading.active_count()) == (sockets, threads)


def num_sockets() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(entry).startswith("socket:")
        except FileNotFoundError:
            continue
    return found


def tensors() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        ("layer.weight", torch.randn(7, 5, generator=generator)),
        ("layer.bias", torch.randn(3, generator=generator).bfloat16()),
        ("scalar", torch.tensor(2.5)),
        ("transposed", torch.arange(6.0).reshape(2, 3).T),
        ("empty", torch.zeros(0, 4)),
    ]


def test_a_layout_is_a_safetensors_file_before_its_values_are_known() -> None:
    described = [(name, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")) for name, tensor in tensors()]
    layout = Layout(described)
    for label in ("run 1", "run 10"):  # the metadata is made once, the label is each time another
        content = b"".join(layout.parts(tensors(), label))
        assert len(content) == layout.num_bytes(label)
        found = load(content)
        assert list(map(str, found)) and all(torch.equal(found[name], tensor) for name, tensor in tensors())


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: [*t, t[0]], lambda t: [("other", t[0][1]), *t[1:]]])
def test_weights_that_are_not_those_described_are_refused(change: Any) -> None:
    with pytest.raises(RuntimeError, match="described"):
        list(Layout(tensors()).parts(change(tensors()), "x"))


def test_a_file_in_memory_is_gone_when_it_is_closed() -> None:
    file, info = open_memory("x")
    with file:
        file.write(b"abc")
        file.flush()
        assert Path(info["path"]).read_bytes() == b"abc"
    assert not os.path.exists(info["path"])
    with SharedWeights(tensors(), "x") as shared:
        assert load(Path(shared.info["path"]).read_bytes())["scalar"] == 2.5
