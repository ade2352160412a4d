"""What a training run depends on, in processes of ours that can be killed: a judge's server, a Docker daemon and a Ray
cluster of our own, and the parts of the run itself, found by what they are.

    with Surroundings(folder, kinds) as around: around.words(), around.kill("judge", rng), around.left()

Nothing that the machine runs for others is touched: the daemon has its own folders and socket. This process becomes the
parent of every orphan below it, so what a killed run leaves behind can be seen.
"""

import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from sandboxrl.data.builtin import build

IMAGE = "sandboxrl/base:local"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PARTS = {
    "worker": "ray::RolloutWorker",
    "learner": "ray::LearnerRank",
    "host": "ray::SandboxHost",
    "nursery": "/run/nursery",
    "sandbox": "/run/nursery",
    "grader": "sandboxrl.envs.grading.worker",
}
"""What is killed -> a part of the command line of its process."""
LISTENS, LOOPBACK, LOOPBACK_6 = "0A", "0100007F", "00000000000000000000000001000000"
"""In /proc/net/tcp and tcp6: a state, and addresses (the first also as the end of one mapped to version 6)."""
READY_S = 60.0
LEFT_S = 60.0
"""How long what belonged to a run may take to end on a machine that is busy."""
JUDGE = """
import json, re, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        official, candidate = (
            re.search(f"<{tag}>(.*?)</{tag}>", asked, re.DOTALL)[1].strip() for tag in ("official_answer", "candidate")
        )
        said = "CORRECT" if official == candidate else "INCORRECT"
        message = {"role": "assistant", "content": said}
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "id": "1", "model": "judge",
                  "object": "chat.completion", "created": 0, "usage": {"completion_tokens": 1, "prompt_tokens": 1}}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass

ThreadingHTTPServer.allow_reuse_address = True
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
REWARD = """
def score(task, answer, sandbox):
    return float(answer.strip() == task.gold)
"""


class Surroundings:
    """Tasks of which a quarter is graded by a judge's server and a quarter by a reward of one's own in a grading
    process; with "host" among `kinds` a cluster that offers sandboxes, with "daemon" a Docker daemon."""

    def __init__(self, folder: Path, kinds: Sequence[str], cluster: Any = None, num_tasks: int = 400) -> None:
        """`cluster`: one that offers sandboxes, which runs join; without it each starts its own."""
        self._folder, self._kinds, self._cluster = folder, kinds, cluster
        self._stack = contextlib.ExitStack()
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        collect_orphans()
        (folder / "reward.py").write_text(REWARD)
        (folder / "arm.yaml").write_text('extends: compact\nanswers: {judge_equality: ""}\n')
        rows = [json.loads(task.to_json()) for task in build("tiny", "train", num_tasks, seed=0)]
        for index, row in enumerate(rows):
            if row["reward"] in ("rouge", "number"):
                row["reward"] = ("judge_equality", "own_words")[index % 2]
        (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._port = _free_port()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            self._start("judge")
            if "daemon" in self._kinds:
                self._data = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="dockerd-", dir="/var/tmp"))
                self._start("daemon")
                saved = subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE)
                subprocess.run(["docker", "-H", self._socket, "load", "-q"], stdin=saved.stdout, check=True)
            if "host" in self._kinds and self._cluster is None:
                self._cluster = self._stack.enter_context(cluster())
            self._ours = descendants(os.getpid())
            failed.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def words(self) -> list[str]:
        """What the recipe must say to use it all."""
        judge = f"http://127.0.0.1:{self._port}/v1"
        words = [
            f"tasks.train={{own: {{source: files, path: {self._folder}/tasks.jsonl}}}}",
            f"grader.kinds={{own_words: {self._folder}/reward.py:score}}",
            *(
                f"grader.judge={judge}",
                "grader.judge_model=judge",
                "grader.workers=1",
                f"prompt={self._folder}/arm.yaml",
            ),
        ]
        if "daemon" in self._kinds:
            words += ["sandbox.backend=docker", f"sandbox.image={IMAGE}", f"sandbox.socket={self._data}/socket"]
        if self._cluster is not None:
            words.append(f"cluster={self._cluster.address}")
        if "host" in self._kinds:
            words.append("sandbox.remote=true")
        return words

    def kill(self, victim: str, rng: random.Random) -> bool:
        """SIGKILL to one of these; a server is back after at most a second. False: there is none just now."""
        if victim in ("judge", "daemon"):
            self._servers[victim].kill()
            self._servers[victim].wait()
            time.sleep(rng.uniform(0, 1))
            self._start(victim)
            self._ours |= {one for one in descendants(os.getpid()) if one[0] == self._servers[victim].pid}
            return True
        pids = running(victim)
        with contextlib.suppress(ProcessLookupError):
            if pids:
                os.kill(rng.choice(pids), signal.SIGKILL)
                return True
        return False

    def left(self) -> list[str]:
        """What runs though the run has ended, containers included."""
        mine = {one for one in descendants(os.getpid()) - self._ours if not _is_of_servers(one[0])}
        found = [f"process {pid}: {_command(pid)[:120]}" for pid in survivors(mine, LEFT_S)]
        if "daemon" in self._kinds:
            ask = ["docker", "-H", self._socket, "ps", "-aq"]
            deadline = time.monotonic() + 15
            while (listed := subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()) and (
                time.monotonic() < deadline
            ):
                time.sleep(0.3)
            found += [f"container {one}" for one in listed]
        return found

    def close(self) -> None:
        for server in self._servers.values():
            server.terminate()
        for server in self._servers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
        for pid, _ in descendants(os.getpid()):
            if "daemon" in self._kinds and self._data in _command(pid):  # of a daemon that was killed
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if "daemon" in self._kinds:
            mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if self._data in line]
            subprocess.run(["umount", "--lazy", *sorted(set(mounted), reverse=True)], capture_output=True)
        self._stack.close()

    @property
    def _socket(self) -> str:
        return f"unix://{self._data}/socket"

    def _start(self, server: str) -> None:
        """The server, ready to answer."""
        command = [sys.executable, "-c", JUDGE, str(self._port)]
        if server == "daemon":
            Path(self._data, "pid").unlink(missing_ok=True)
            paths = [f"--{name}={self._data}/{part}" for name, part in (("data-root", "data"), ("exec-root", "exec"))]
            command = ["dockerd", *paths, f"--pidfile={self._data}/pid", "-H", self._socket, "--bridge=none"]
            command += ["--iptables=false", "--ip6tables=false", "--storage-driver=overlay2"]
        with (self._folder / f"{server}.log").open("ab") as log:
            self._servers[server] = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_end_with_us)
        deadline = time.monotonic() + READY_S
        while not self._answers(server):
            if self._servers[server].poll() is not None or time.monotonic() > deadline:
                said = (self._folder / f"{server}.log").read_text(errors="replace")[-500:]
                raise RuntimeError(f"{server} does not start: {said}")
            time.sleep(0.1)

    def _answers(self, server: str) -> bool:
        if server == "daemon":
            return subprocess.run(["docker", "-H", self._socket, "info"], capture_output=True).returncode == 0
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            return True
        return False


def descendants(pid: int) -> set[tuple[int, str]]:
    """Every process below `pid`, as (pid, start time)."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if (fields := _stat(int(folder.name))) is not None:
            parents[int(folder.name)] = int(fields[1]), fields[19]
    found: set[tuple[int, str]] = set()
    level = {pid}
    while level:
        level = {child for child, (parent, _) in parents.items() if parent in level}
        found |= {(child, parents[child][1]) for child in level}
    return found


def survivors(processes: set[tuple[int, str]], patience_s: float = 10.0) -> set[int]:
    """Those of `processes` that still run after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while True:
        left = set()
        for pid, started in processes:
            fields = _stat(pid)
            if fields is not None and fields[19] == started and fields[0] != "Z":
                left.add(pid)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, or None for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes, of which one offers sandboxes."""
    from sandboxrl.rl.cluster.jobs import own_cluster  # Ray

    with own_cluster() as nodes:
        nodes.add_node(num_cpus=2, resources={"sandboxes": 64}, dashboard_agent_listen_port=0)
        yield nodes


def _end_with_us() -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def collect_orphans() -> None:
    """From now on what outlives its parent, anywhere below this process, becomes a child of this one."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def running(victim: str, below: int = 0) -> list[int]:
    """The processes below `below` (0: this one) that are such a part of a run."""
    found = []
    for pid, _ in descendants(below or os.getpid()):
        command = _command(pid)
        if PARTS[victim] in command and not command.startswith(("bwrap", "/usr/bin/bwrap")):
            forked = _name(_parent(pid)) != "bwrap"
            if victim not in ("nursery", "sandbox") or forked == (victim == "sandbox"):
                found.append(pid)
    return found


def heard_outside() -> list[str]:
    """What below this process listens on an address that other machines reach."""
    outside = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            if fields[3] == LISTENS and not address.endswith(LOOPBACK) and address != LOOPBACK_6:
                outside[f"socket:[{fields[9]}]"] = int(port, 16)
    found = []
    for pid, _ in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if (port := outside.get(os.readlink(descriptor))) is not None:
                        found.append(f"{_command(pid)[:60].strip()} on port {port}")
    return found


def _is_of_servers(pid: int) -> bool:
    """The parts that a daemon or a cluster of ours keeps beside it, whatever runs."""
    command = _command(pid)
    return command.startswith(("containerd", "ray::IDLE")) or "/default_worker.py" in command


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    return ""


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
