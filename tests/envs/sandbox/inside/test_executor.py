"""The framed protocol from both sides, with a stranger at the other end; and the guard of PID 1."""

import asyncio
import shlex
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrl.envs.sandbox.host import program
from sandboxrl.envs.sandbox.host.messages import BATCH_BYTES, cut, file_frames, wire_path
from sandboxrl.envs.sandbox.host.wire import Box
from sandboxrl.envs.sandbox.inside.frames import FRAME, MAX_HEADER, MAX_PAYLOAD, RECORD, pack, unpack_header
from sandboxrl.envs.sandbox.inside.processes import in_own_pid_namespace
from sandboxrl.envs.sandbox.protocol import FileRefused, SandboxConfig, SandboxDied, SandboxEnded

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name and b"=" not in name)
VALUES = st.binary(max_size=50).filter(lambda value: b"\0" not in value)


@given(st.dictionaries(NAMES, VALUES, min_size=1), st.binary())
def test_a_frame_comes_back_as_it_was(fields, payload):
    frame = pack(fields, payload)
    header_size, payload_size = FRAME.unpack_from(frame)
    assert unpack_header(frame[FRAME.size : FRAME.size + header_size]) == fields
    assert frame[FRAME.size + header_size :] == payload and len(payload) == payload_size


@given(st.dictionaries(st.text(min_size=1).filter(lambda path: "\0" not in path), st.binary(), max_size=5))
def test_files_are_cut_into_records_that_join_again(files):
    joined: dict[bytes, bytearray] = {}
    for frame in file_frames(files):
        while frame:
            path_size, offset, size = RECORD.unpack_from(frame)
            path = frame[RECORD.size : RECORD.size + path_size]
            if not offset:
                joined[path] = bytearray()
            assert len(joined[path]) == offset
            joined[path] += frame[RECORD.size + path_size : RECORD.size + path_size + size]
            frame = frame[RECORD.size + path_size + size :]
    assert joined == {wire_path(path): data for path, data in files.items()}


def test_a_large_file_spans_frames_of_bounded_size():
    frames = list(file_frames({"a": bytes(3 * BATCH_BYTES + 1), "b": b"x"}))
    assert len(frames) == 4 and all(len(frame) <= BATCH_BYTES + 100 for frame in frames)


@given(st.integers(0, 5000), st.integers(0, 300))
def test_cut_output_is_bounded_and_honest(total, limit):
    whole = bytes(n % 251 for n in range(total))
    kept = whole if total <= limit else whole[: limit // 2] + whole[total - (limit - limit // 2) :]
    shown = cut(kept, total, limit)
    assert len(shown) <= limit
    if total <= limit:
        assert shown == whole
    elif b" bytes dropped ...]\n" in shown:
        head, rest = shown.split(b"\n[... ", 1)
        dropped, tail = rest.split(b" bytes dropped ...]\n", 1)
        assert whole.startswith(head) and whole.endswith(tail) and int(dropped) + len(head) + len(tail) == total


def box_with(answers: bytes, body, inquest=None):
    """`body(box)` with a box whose other end says `answers` and hangs up."""

    async def whole():
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)

        async def say():
            loop = asyncio.get_running_loop()
            try:
                await loop.sock_sendall(theirs, answers)
                theirs.shutdown(socket.SHUT_WR)
                while await loop.sock_recv(theirs, 65536):
                    pass
            except OSError:
                pass  # the host hung up first, which is its right

        async def end():
            theirs.close()

        speaker = asyncio.create_task(say())
        reader, writer = await asyncio.open_connection(sock=ours)
        box = Box("fuzzed", reader, writer, end, 1000, inquest=inquest)
        try:
            async with asyncio.timeout(20):
                return await body(box)
        finally:
            speaker.cancel()
            await asyncio.gather(speaker, return_exceptions=True)
            await box.close()

    return asyncio.run(whole())


async def use(box):
    """Everything a rollout does; whatever the stranger says, the outcome is a result or one of two errors."""
    try:
        await box.hello()
        result = await box.exec("echo hi", max_bytes=100)
        assert len(result.stdout) <= 100 and len(result.stderr) <= 100
        assert len(await box.read("x", max_bytes=100)) <= 100
        await box.write({"x": b"1"})
    except (SandboxDied, FileRefused):
        return


READY = pack({b"ready": b"1"})
GOOD = {
    b"id": b"1", b"exit": b"0", b"timed_out": b"0", b"duration": b"0.1", b"background": b"0", b"stdout": b"3",
    b"stderr": b"0", b"kept": b"3",
}  # fmt: skip


def test_the_host_takes_a_good_answer():
    async def body(box):
        await box.hello()
        return await box.exec("echo hi")

    result = box_with(READY + pack(GOOD, b"hi\n"), body)
    assert (result.exit_code, result.stdout, result.stdout_bytes) == (0, b"hi\n", 3)


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_the_host_survives_noise(noise):
    box_with(noise, use)
    box_with(READY + noise, use)


FIELD_VALUES = st.one_of(
    st.sampled_from([b"", b"0", b"1", b"-1", b"1e9", b"nan", b"99999999999999999999", b"\xff", b"3"]), VALUES
)


@given(
    st.dictionaries(st.sampled_from([*GOOD, b"errno", b"message"]), FIELD_VALUES),
    st.binary(max_size=200),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_host_survives_forged_answers(fields, payload, keep_id):
    answers = b"".join(
        pack({**GOOD, **fields, **({b"id": b"%d" % n} if keep_id else {})}, payload) for n in range(1, 4)
    )
    box_with(READY + answers, use)


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">II", MAX_HEADER + 1, 0),
        struct.pack(">II", 10, MAX_PAYLOAD + 1),
        struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF),
        pack({**GOOD, b"kept": b"99"}, b"hi\n"),
        pack({**GOOD, b"kept": b"-1"}, b"hi\n"),
        pack({**GOOD, b"stdout": b"1"}, b"hi\n"),
        pack({**GOOD, b"stderr": b"5"}, b"hi\n"),
        pack({**GOOD, b"duration": b"nan"}, b"hi\n"),
        pack(GOOD, b"x" * 10_000),
    ],
)
def test_the_host_ends_a_sandbox_that_lies(frame):
    async def body(box):
        await box.hello()
        with pytest.raises(SandboxDied):
            await box.exec("echo hi")
        assert not box.alive

    box_with(READY + frame, body)


def test_whose_doing_an_end_was_is_found_out_once():
    asked = []

    async def inquest(symptoms):
        asked.append(symptoms)
        return f"it gave up: {symptoms.farewell}"

    async def body(box):
        await box.hello()
        for _ in range(2):
            with pytest.raises(SandboxEnded, match="gave up: MemoryError"):
                await box.exec("echo hi")

    box_with(READY + pack({b"farewell": b"MemoryError()"}), body, inquest)
    assert len(asked) == 1


def test_what_cannot_be_found_out_is_the_machines():
    async def inquest(symptoms):
        raise SandboxDied("the daemon is away")

    async def body(box):
        await box.hello()
        with pytest.raises(SandboxDied, match="daemon is away"):
            await box.exec("echo hi")

    box_with(READY, body, inquest)


def test_the_executor_refuses_to_run_on_a_machine():
    assert not in_own_pid_namespace()


@pytest.mark.parametrize("module", ["serve", "nursery"])
def test_nothing_of_ours_runs_as_anything_but_pid_1(machine, module):
    """Tried inside a sandbox, where a broken guard would hurt nobody."""
    words = shlex.join(program.words(".", module))

    async def body(box):
        await box.write(program.FILES)
        result = await box.exec(f"python3 {words} </dev/null; echo $?; echo alive")
        assert result.stdout == b"1\nalive\n" and b"refuses to run" in result.stderr

    machine.run(body)


def test_a_limit_that_leaves_no_memory_is_refused():
    from sandboxrl.data.errors import InputError
    from sandboxrl.envs.sandbox.pool import open_backend
    from sandboxrl.envs.sandbox.protocol import Limits

    with pytest.raises(InputError, match="memory_bytes"):
        open_backend(SandboxConfig(limits=Limits(memory_bytes=512 << 20, disk_bytes=512 << 20)))


def executor_fuzz(machine, examples: int):
    """Frames of every shape into one real executor after another: it answers or it ends, and it never hangs."""
    operations = st.sampled_from([b"ping", b"exec", b"read", b"write", b"nuke", b"", b"\xff", b"run"])
    keys = st.sampled_from([b"id", b"op", b"timeout", b"keep", b"cwd", b"persist", b"path", b"max", b"env.A", b"env."])
    values = st.one_of(
        FIELD_VALUES, st.sampled_from([b"/testbed/x", b"/", b"..", b"/proc/1/mem", b"/dev/zero", b"x" * 5000])
    )
    requests = st.builds(
        lambda identity, op, fields, payload: pack({b"id": identity, b"op": op, **fields}, payload),
        st.just(b"7"), operations, st.dictionaries(keys, values, max_size=6), st.binary(max_size=100),
    )  # fmt: skip
    frames = st.lists(st.one_of(requests, st.binary(max_size=40)), min_size=1, max_size=30)
    counted = 0

    def one(sent):
        nonlocal counted
        counted += len(sent)

        async def body(box):
            box.send(b"".join(sent))
            try:
                async with asyncio.timeout(20):
                    await box.exec("true", timeout_s=5)
            except SandboxDied:
                return

        machine.run(body)

    settings(max_examples=examples, deadline=None)(given(frames)(one))()
    return counted


def test_the_executor_survives_noise(machine):
    if machine.name != "bubblewrap":
        pytest.skip("one executor serves every backend: fuzzed in the fastest")
    assert executor_fuzz(machine, 60) > 60
