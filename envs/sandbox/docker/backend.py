"""Sandboxes in containers, through the Docker Engine API on its unix socket; Podman's compatible socket works too.

A container runs the executor as PID 1. It connects out to a socket of the host in a read-only mount, once; the host
then removes that folder, so that nothing of the host is left in reach. The connection is the lease: when this process
ends, however it ends, the executor sees the end of file, the container ends and the daemon removes it. A reaper is the
second line: it removes containers of owners that are gone, found by label, never by name, never those of a living run.

The client is plain HTTP/1.0 on a fresh connection per request: no thread, and half the start time of the library.

Size: client, backend and reaper know the same labels and requests of one API.
"""

import asyncio
import contextlib
import functools
import json
import os
import shutil
import socket
import struct
import tempfile
import time
import urllib.parse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sandboxrl.envs.sandbox.host import program, resources, seccomp
from sandboxrl.envs.sandbox.host.owner import owner_is_dead, owner_of
from sandboxrl.envs.sandbox.host.surroundings import environment, memory_told
from sandboxrl.envs.sandbox.host.wire import HELLO_S, Box, Kin, Symptoms, executor_limits, new_id
from sandboxrl.envs.sandbox.network import packet_filter
from sandboxrl.envs.sandbox.protocol import (
    OF_A_USER,
    SHARED,
    UNCOUNTED,
    WORKDIR,
    BackendUnavailable,
    Sandbox,
    SandboxConfig,
    SandboxDied,
    SandboxError,
    TmpfsSizes,
)

LABEL = "sandboxrl"
OWNER_LABEL = "sandboxrl.owner"
WORKDIR_LABEL = "sandboxrl.workdir"
"""An image labelled `sandboxrl.workdir=tmpfs` keeps nothing in /testbed, so /testbed is a size-limited memory
filesystem. Of other images (a task's repository lies in /testbed) it is a part of the container's own layer."""
INSIDE = "/run/sandboxrl"
FILTER, MEMORY = "seccomp.bpf", "meminfo"
KEPT = (WORKDIR, "/root", "/tmp", "/dev/shm")
"""What a snapshot holds unless other folders are named: what was installed elsewhere is not in it."""
CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]
"""What apt-get install and pip install as root need, and no more."""
PODMAN = "Podman Engine"
CONTROLLERS = {"MemoryLimit": "memory", "CpuCfsQuota": "cpu", "PidsLimit": "pids"}
"""What a daemon says of itself: control group. A daemon that an ordinary user started may have none."""
REQUEST_S = 120.0
REAP_EVERY_S = 60.0
REAP_GRACE_S = 2.0
WATCH_LAYERS_S = 1.0
FOLLOW_AGAIN_S = 0.2
INQUEST_S, INQUEST_AGAIN_S = 5.0, 0.2
"""For a container's end to be told: longer than the daemon takes to find out why."""
KILLED = 137
QUEUED_SIGNALS = 4096
"""Of a container's root, who shares them with the machine's own."""


class DaemonError(SandboxDied):
    """The daemon refused a request; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Docker:
    """The `docker` backend (`sandboxrl.envs.sandbox.protocol.Backend`)."""

    name = "docker"

    def __init__(self, config: SandboxConfig) -> None:
        """Raises BackendUnavailable when no daemon answers on the socket."""
        self._config = config
        self._tmpfs = TmpfsSizes.within(config.limits)
        self._profile = json.dumps(seccomp.docker_profile())
        self._owner = owner_of(os.getpid())
        self._images: dict[str, dict[str, Any]] = {}
        self._reaped = 0.0
        self._network_ready = False
        self._reaping: asyncio.Task[int] | None = None
        self._following: asyncio.Task[None] | None = None
        self._daemon = 0
        """How many daemons have ended since this began: one that is started again has forgotten what it did to its
        containers, which is to kill them."""
        engine, info = self._probe()
        self._version = str(engine["ApiVersion"])
        self._podman = any(part["Name"] == PODMAN for part in engine.get("Components") or [])
        self._grouped = all(info.get(flag, True) for flag in CONTROLLERS)
        self._refuse(info.get("Runtimes") or {})
        self._cpus = int(info["NCPU"])
        self._groups_shown = str(info.get("CgroupVersion", "1")) == "1"
        self._quota = ["Backing Filesystem", "xfs"] in (info.get("DriverStatus") or [])
        self._filter = seccomp.bpf(counted=self._grouped)
        etc = _etc_files(config.network)
        self._given = {**etc, FILTER: self._filter, MEMORY: memory_told(config.limits)}
        self._covers = [(name, f"/etc/{name}") for name in etc]
        if not config.runtime:  # others may not have it covered, or tell by themselves
            self._covers.append((MEMORY, "/proc/meminfo"))
        self._boxes: dict[str, Box] = {}
        self._watching: asyncio.Task[None] | None = None
        self._discarding: set[asyncio.Task[None]] = set()

    def _refuse(self, runtimes: Collection[str]) -> None:
        """Raises BackendUnavailable for what this daemon would not do, or would say it did."""
        runtime = self._config.runtime
        if self._podman and self._config.network == "egress":
            raise BackendUnavailable(
                "sandbox.network=egress is not available through Podman: its own rules let containers through before "
                "ours see them; use Docker, or sandbox.backend=bubblewrap as root"
            )
        if self._podman and runtime:
            raise BackendUnavailable(
                f"sandbox.runtime={runtime}: Podman ignores a container's runtime; name it at its start: "
                f"podman --runtime {runtime} system service"
            )
        if runtime and runtime not in runtimes and "." not in runtime:  # containerd's own have dots and are not listed
            raise BackendUnavailable(
                f"sandbox.runtime={runtime}: this daemon has {', '.join(sorted(runtimes))}; start it with: "
                f"dockerd --add-runtime {runtime}=PATH, or name it in /etc/docker/daemon.json"
            )

    async def start(self, image: str = "") -> Sandbox:
        """A ready sandbox from `image`. Raises BackendUnavailable for an image that is not there, SandboxDied."""
        return await self._start(image or self._config.image)

    async def _start(self, image: str) -> Box:
        await self._prepare()
        with contextlib.ExitStack() as stack:
            try:
                folder = self._meeting_folder()
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            except OSError as error:  # this machine is out of descriptors, or of disk
                raise SandboxDied(f"a sandbox of {image} did not start: {error}") from error
            return await self._met(image, folder, listener)

    async def _met(self, image: str, folder: Path, listener: socket.socket) -> Box:
        """One that meets this process at a socket in `folder`."""
        identity, container = new_id(), ""
        try:
            listener.setblocking(False)
            listener.bind(f"{folder}/socket")
            os.chmod(f"{folder}/socket", 0o666)
            listener.listen(1)
            for name, text in (program.FILES | self._given).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(text)
            if self._podman:
                (folder / "seccomp.json").write_text(self._profile)
            spec = await self._specification(image, str(folder), identity)
            container = await self._created(spec)
            await self._launch(container, image)
            async with asyncio.timeout(HELLO_S):
                stream, _ = await asyncio.get_running_loop().sock_accept(listener)
            box = await self._box(identity, image, container, stream)
        except TimeoutError as error:
            await asyncio.shield(self._remove(container))
            raise SandboxDied(f"sandbox {identity} ({image}) did not connect within {HELLO_S:.0f} s") from error
        except OSError as error:  # TMPDIR is full, or its name is too long for a socket
            if container:
                await asyncio.shield(self._remove(container))
            raise SandboxDied(f"sandbox {identity} ({image}): {error}") from error
        except BaseException:
            if container:
                await asyncio.shield(self._remove(container))
            raise
        return box

    def describe_limits(self) -> dict[str, str]:
        """How each limit is held on this machine; what is not held exactly is said."""
        layer = (
            "size of the container's layer"
            if self._quota
            else "the container's layer is watched and what runs is killed while it is too large; exactly: "
            "put the daemon's data-root on xfs mounted with pquota"
        )
        grouped, needs = "control group", "needs a daemon with control groups: started by root, or version 2"
        sockets = "; NOT HELD: socket buffers, which version 2 counts" if self._groups_shown else ""
        return {
            "memory_bytes": grouped + sockets
            if self._grouped
            else f"programs are watched and the largest is killed; {UNCOUNTED}; exactly: {needs}",
            "cpus": grouped if self._grouped else f"NOT HELD: {needs}",
            "processes": grouped if self._grouped else "RLIMIT_NPROC of its user",
            "disk_bytes": f"size-limited memory filesystems; {layer}; {SHARED}",
            "open_files": f"RLIMIT_NOFILE of each process; {OF_A_USER} all containers and root of this machine",
            "file_bytes": "RLIMIT_FSIZE of each process",
            "output_bytes": "head and tail kept by the executor",
            "network": packet_filter.HELD[self._config.network],
        }

    async def reap(self) -> int:
        """Remove containers of this project whose owner is dead; how many. Those that the daemon is about to remove by
        itself, as the lease makes it do, are left to it: two removals at once leave ghosts in its list."""
        orphans = await self._orphans()
        if orphans:
            await asyncio.sleep(REAP_GRACE_S)
            orphans &= await self._orphans()
        for container in orphans:
            await self._remove(container)
        return len(orphans)

    async def _orphans(self) -> set[str]:
        filters = urllib.parse.quote(json.dumps({"label": [f"{LABEL}=1"], "status": ["created", "running", "paused"]}))
        listed = await self._request("GET", f"/containers/json?all=1&filters={filters}")
        return {found["Id"] for found in listed if owner_is_dead(found["Labels"].get(OWNER_LABEL, ""))}

    async def close(self) -> None:
        """End the background passes; connections are held by no one."""
        tasks = [task for task in (self._reaping, self._watching, self._following) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._discarding, return_exceptions=True)

    async def _box(self, identity: str, image: str, container: str, stream: socket.socket) -> Box:
        reader, writer = await asyncio.open_connection(sock=stream)

        async def end() -> None:
            self._boxes.pop(container, None)
            await self._remove(container)

        async def inquest(symptoms: Symptoms) -> str:
            return await self._inquest(container, image, symptoms) if self._daemon == daemon else ""

        limits, daemon = self._config.limits, self._daemon
        kin = Kin(KEPT, lambda: self._start(image))
        peer = struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        counted = functools.partial(resources.counted, resources.groups_of_container(peer[0], container))
        box = Box(identity, reader, writer, end, limits.output_bytes, inquest, kin, counted)
        await box.hello()
        self._boxes[container] = box
        if not self._quota and self._watching is None:
            self._watching = asyncio.create_task(self._watch_layers())
        return box

    async def _inquest(self, container: str, image: str, symptoms: Symptoms) -> str:
        """See `wire.Inquest`. A container that was killed by anything but its own memory limit was killed from outside:
        from within, no signal reaches PID 1. Raises SandboxDied when the daemon is away."""
        deaths: list[dict[str, str]] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(INQUEST_S):
                while not deaths:
                    await asyncio.sleep(INQUEST_AGAIN_S)
                    found = await self._events(container)
                    deaths = [event["Actor"]["Attributes"] for event in found if event["Action"] == "die"]
        if not deaths:
            probe = await self.start(image)  # whether it alone is ill
            await probe.close()
            return f"{symptoms.why}, while others do answer"
        if symptoms.farewell:
            return f"its PID 1 gave up: {symptoms.farewell}"
        status = int(deaths[0].get("exitCode", KILLED))
        if status == KILLED and not any(event["Action"] == "oom" for event in found):
            await asyncio.sleep(INQUEST_AGAIN_S)  # the news of its memory may come after that of its death
            found = await self._events(container)
        if any(event["Action"] == "oom" for event in found):
            return "it used up its memory"
        return "" if status in (0, KILLED) else f"its PID 1 ended with status {status}"

    async def _events(self, container: str) -> list[dict[str, Any]]:
        """What has happened to a container, of the last few hundred events of the daemon."""
        filters = urllib.parse.quote(json.dumps({"container": [container], "event": ["die", "oom"]}))
        told = await self._request("GET", f"/events?since=0&until={time.time():.3f}&filters={filters}")
        return told if isinstance(told, list) else [told] if told else []

    async def _created(self, spec: dict[str, Any]) -> str:
        """As `_create`. Whoever leaves while the daemon is at it leaves nothing behind."""
        creating = asyncio.create_task(self._create(spec))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            discarding = asyncio.create_task(self._discard(creating))
            self._discarding.add(discarding)
            discarding.add_done_callback(self._discarding.discard)
            raise

    async def _discard(self, creating: "asyncio.Task[str]") -> None:
        with contextlib.suppress(SandboxError):  # it could not be made, or the daemon is away: the reaper comes later
            await self._remove(await creating)

    async def _create(self, spec: dict[str, Any]) -> str:
        """The id of a new container, with a quota on its layer where the daemon has quotas."""
        if self._quota:
            spec["HostConfig"]["StorageOpt"] = {"size": str(self._config.limits.disk_bytes)}
        try:
            return str((await self._request("POST", "/containers/create", spec))["Id"])
        except DaemonError as error:
            if not self._quota or "pquota" not in str(error):
                raise
            self._quota = False  # xfs without project quotas
            del spec["HostConfig"]["StorageOpt"]
            return await self._create(spec)

    async def _launch(self, container: str, image: str) -> None:
        try:
            await self._request("POST", f"/containers/{container}/start")
        except DaemonError as error:
            if "python3" in str(error) and "not found" in str(error):
                raise BackendUnavailable(f"image {image!r} needs python3 (3.9 or newer) and bash inside") from error
            raise

    async def _watch_layers(self) -> None:
        """Without a quota: end what runs in a sandbox whose layer has grown too large. Only sandboxes that are at work
        are looked at, and their user sees killed commands and may still remove files."""
        while True:
            await asyncio.sleep(WATCH_LAYERS_S)
            for container, box in list(self._boxes.items()):
                if not box.busy:
                    continue
                with contextlib.suppress(SandboxError):  # it is being closed; if it died, its user learns that itself
                    found = await self._request("GET", f"/containers/{container}/json?size=1")
                    if (found.get("SizeRw") or 0) > self._config.limits.disk_bytes:
                        await box.nuke()

    async def _follow_daemon(self) -> None:
        """Count the daemons that end: each closes its stream of events, of which nothing is read."""
        quiet = urllib.parse.quote(json.dumps({"type": ["plugin"]}))
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._config.socket)
            except OSError:  # whoever asks for a sandbox says so
                await asyncio.sleep(FOLLOW_AGAIN_S)
                continue
            try:
                writer.write(_request_bytes("GET", f"/v{self._version}/events?filters={quiet}"))
                while await reader.read(65536):
                    pass
            except OSError:
                pass  # as good as an end
            finally:
                writer.close()
            self._daemon += 1
            await asyncio.sleep(FOLLOW_AGAIN_S)

    async def _specification(self, image: str, folder: str, identity: str) -> dict[str, Any]:
        limits, tmpfs = self._config.limits, self._tmpfs
        mounts = {
            "/tmp": f"exec,{tmpfs.options(tmpfs.tmp, '1777')}",
            "/dev/shm": f"exec,{tmpfs.options(tmpfs.shm, '1777')}",
        }
        if self._groups_shown:  # version 1 shows them on a memory filesystem of any size that root may write to
            mounts["/sys/fs/cgroup"] = "ro,size=4096"
        labels = (await self.inspect(image))["Config"].get("Labels") or {}
        if labels.get(WORKDIR_LABEL) == "tmpfs":
            mounts[WORKDIR] = f"exec,{tmpfs.options(tmpfs.testbed, '755')}"
        bounds = executor_limits(limits, watch_memory=not self._grouped)
        profile = f"{folder}/seccomp.json" if self._podman else self._profile
        settings = [f"{name}={bound}" for name, bound in bounds.items()]
        return {
            "Image": image,
            "Entrypoint": [],
            "Cmd": ["python3", *program.words(INSIDE, "serve"), f"{INSIDE}/socket", f"{INSIDE}/{FILTER}", *settings],
            "WorkingDir": "/",
            **({} if self._config.network == "full" else {"Hostname": "sandbox"}),
            "User": "0:0",
            "Env": [f"{name}={value}" for name, value in environment(self._config).items()],
            "Labels": {LABEL: "1", OWNER_LABEL: self._owner, "sandboxrl.id": identity},
            "NetworkDisabled": self._config.network == "none",
            "HostConfig": {
                "AutoRemove": True,
                "Binds": [
                    f"{folder}:{INSIDE}:ro",
                    *(f"{folder}/{name}:{path}:ro" for name, path in self._covers),
                ],
                "CapAdd": CAPABILITIES,
                "CapDrop": ["ALL"],
                "Init": False,
                "LogConfig": {"Type": "none"},
                "Memory": limits.memory_bytes,
                "MemorySwap": limits.memory_bytes,
                "NanoCpus": int(min(limits.cpus, self._cpus) * 1e9),
                "NetworkMode": {"none": "none", "full": "host", "egress": packet_filter.NETWORK}[self._config.network],
                "Dns": packet_filter.resolvers() if self._config.network == "egress" else [],
                "Sysctls": {f"kernel.{name}": value for name, value in tmpfs.system_v().items()}
                | ({"net.ipv6.conf.all.disable_ipv6": "1"} if self._config.network == "egress" else {}),
                "PidsLimit": limits.processes,
                "Runtime": self._config.runtime or None,
                "SecurityOpt": ["no-new-privileges", f"seccomp={profile}"],
                "Tmpfs": mounts,
                "Ulimits": [
                    {"Name": "core", "Soft": 0, "Hard": 0},
                    {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
                    {"Name": "nproc", "Soft": limits.processes, "Hard": limits.processes},
                    {"Name": "sigpending", "Soft": QUEUED_SIGNALS, "Hard": QUEUED_SIGNALS},
                ],
            },
        }

    async def inspect(self, image: str = "") -> dict[str, Any]:
        """The daemon's description of an image: `Id` is its digest, `Size` its bytes. Raises BackendUnavailable."""
        image = image or self._config.image
        if image not in self._images:
            try:
                found = await self._request("GET", f"/images/{urllib.parse.quote(image, safe='/:@')}/json")
            except DaemonError as error:
                if error.status == 404:
                    raise BackendUnavailable(
                        f"image {image!r} is not on this machine; build it with: sandboxrl image build, "
                        f"or fetch it with: docker pull {image}"
                    ) from error
                raise
            self._images[image] = found
        return self._images[image]

    def _meeting_folder(self) -> Path:
        """A fresh folder that the container mounts. The parent cannot be listed, so that no other user of the machine
        finds the socket and answers in the sandbox's place."""
        parent = Path(tempfile.gettempdir()) / f"sandboxrl-{os.getuid()}"
        parent.mkdir(mode=0o711, exist_ok=True)
        if parent.stat().st_uid != os.getuid() or parent.is_symlink():
            raise BackendUnavailable(f"{parent} belongs to another user; set TMPDIR to a folder of your own")
        folder = Path(tempfile.mkdtemp(dir=parent))
        folder.chmod(0o755)
        return folder

    async def _remove(self, container: str) -> None:
        """End and remove a container, and wait until it is gone. One that is gone already is fine."""
        for attempt in range(3):
            try:
                await self._request("DELETE", f"/containers/{container}?force=1&v=1")
                return
            except DaemonError as error:
                if error.status == 404:
                    return
                if error.status == 409:  # the daemon is removing it: AutoRemove
                    with contextlib.suppress(DaemonError):
                        await self._request("POST", f"/containers/{container}/wait?condition=removed")
                elif attempt == 2:
                    raise
                else:  # Podman answers 500 while PID 1 is on its way out
                    await asyncio.sleep(0.1)

    async def _prepare(self) -> None:
        """What the first sandbox needs once, and the reaper now and then."""
        if self._config.network == "egress" and not self._network_ready:
            try:
                await self._request("POST", "/networks/create", packet_filter.specification())
            except DaemonError as error:
                if error.status != 409:  # it is there: another run made it
                    raise
            await asyncio.to_thread(packet_filter.protect)
            self._network_ready = True
        if self._following is None:
            self._following = asyncio.create_task(self._follow_daemon())
        now = time.monotonic()
        if now - self._reaped > REAP_EVERY_S or not self._reaped:
            self._reaped = now
            self._reaping = asyncio.create_task(self.reap())

    def _probe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the daemon says of its version and of itself."""
        path = self._config.socket
        try:
            engine = _ask(path, "/version")
            info = _ask(path, f"/v{engine['ApiVersion']}/info")
            for part in engine.get("Components") or []:
                if part["Name"] == PODMAN:  # to Docker's clients it says of every service that it has control groups
                    host = _ask(path, f"/v{part['Details']['APIVersion']}/libpod/info")["host"]
                    info |= {flag: name in host["cgroupControllers"] for flag, name in CONTROLLERS.items()}
            return engine, info
        except FileNotFoundError as error:
            raise BackendUnavailable(
                f"no Docker daemon at {path}; start one with: sudo systemctl start docker (or: sudo dockerd &), "
                "set sandbox.socket to where it listens, or use sandbox.backend=bubblewrap"
            ) from error
        except PermissionError as error:
            raise BackendUnavailable(
                f"this user may not use the Docker daemon at {path}; allow it with: sudo usermod -aG docker $USER"
            ) from error
        except OSError as error:
            raise BackendUnavailable(
                f"the Docker daemon at {path} does not answer ({error}); restart it with: sudo systemctl restart docker"
            ) from error

    async def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The decoded JSON answer. Raises DaemonError for a refusal, SandboxDied when the daemon cannot be reached."""
        try:
            async with asyncio.timeout(REQUEST_S):
                reader, writer = await asyncio.open_unix_connection(self._config.socket)
                try:
                    writer.write(_request_bytes(method, f"/v{self._version}{path}", body))
                    await writer.drain()
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise SandboxDied(f"Docker daemon: {method} {path}: {error!r}") from error
        return _decode(answer)


def _etc_files(net: str) -> dict[str, bytes]:
    """Files that Docker would make and mount: writable, on the host's disk, where no limit counts them. Those of the
    host's own network stay its own."""
    if net == "full":
        return {}
    names = "".join(f"nameserver {address}\n" for address in packet_filter.resolvers()) if net == "egress" else ""
    hosts = "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 sandbox\n"
    return {"hostname": b"sandbox\n", "hosts": hosts.encode(), "resolv.conf": names.encode()}


def _ask(path: str, request: str) -> Any:
    """The decoded JSON answer, for the time before there is an event loop. Raises OSError, SandboxDied."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(path)
        connection.sendall(_request_bytes("GET", request))
        return _decode(b"".join(iter(lambda: connection.recv(65536), b"")))


def _request_bytes(method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Length: {len(data)}\r\n"
    if body is not None:
        head += "Content-Type: application/json\r\n"
    return head.encode() + b"\r\n" + data


def _decode(answer: bytes) -> Any:
    """The JSON body of an HTTP/1.0 answer, or None without one. Raises DaemonError."""
    head, _, body = answer.partition(b"\r\n\r\n")
    try:
        status = int(head.split(None, 2)[1])
    except (IndexError, ValueError) as error:
        raise SandboxDied(f"Docker daemon: not an HTTP answer: {answer[:200]!r}") from error
    if status >= 400:
        raise DaemonError(status, f"Docker daemon: {status} {body[:500].decode(errors='replace').strip()}")
    decoder, values, text = json.JSONDecoder(), [], body.decode(errors="replace").strip()
    while text:  # events come one after the other
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:].lstrip()
    return values[0] if len(values) == 1 else values or None
