"""One sandbox of a peer at a time, driven over standard input, by the peers' own Python and without ours.

    PEERS_PYTHON bench/peers.py reference|swerex IMAGE

One JSON object per line in, one out. `op` is one of: start; exec (command, timeout_s); execute (command); write (files:
path to text); read (path); close. Each answer carries `seconds`, measured here around the peer's own call and nothing
else; that of start also `container`, so that the other side can remove what a hung peer leaves.
"""

import asyncio
import json
import logging
import os
import shlex
import sys
import tempfile
import time


class Reference:
    """llm-in-sandbox 0.2.0 `DockerRuntime`, as published."""

    def __init__(self, image):
        self.image = image
        self.runtime = None

    async def start(self, request):
        from llm_in_sandbox.docker_runtime import DockerRuntime

        started = time.perf_counter()
        self.runtime = DockerRuntime(self.image, logger=logging.getLogger("quiet"))
        return {"seconds": time.perf_counter() - started, "container": self.runtime.container.id}

    async def exec(self, request):
        out, err, code = self.runtime.demux_run(request["command"], timeout=request.get("timeout_s", 120))
        return {"stdout": out, "stderr": err, "code": code}

    async def write(self, request):
        with tempfile.TemporaryDirectory() as folder:
            for path, text in request["files"].items():
                with open(os.path.join(folder, os.path.basename(path)), "w") as file:
                    file.write(text)
            started = time.perf_counter()
            self.runtime.copy_dir_to_container(folder, os.path.dirname(next(iter(request["files"]))))
            return {"seconds": time.perf_counter() - started}

    async def read(self, request):
        path = shlex.quote(request["path"])
        return {"content": self.runtime.run(f"cat {path} 2>/dev/null || echo ''")[0]}  # how it reads the answer

    async def close(self, request):
        self.runtime.close()


class SweRex:
    """SWE-ReX 1.4.0 `DockerDeployment`; its server runs from this folder's environment, mounted into the same image."""

    def __init__(self, image):
        self.image = image
        self.deployment = None

    async def start(self, request):
        from swerex.deployment.docker import DockerDeployment
        from swerex.runtime.abstract import CreateBashSessionRequest

        here = sys.prefix
        mount = ["-v", f"{here}:{here}:ro", "-e", f"PATH={here}/bin:/usr/local/bin:/usr/bin:/bin"]
        self.deployment = DockerDeployment(image=self.image, docker_args=mount, pull="never")
        await self.deployment.start()
        await self.deployment.runtime.create_session(CreateBashSessionRequest())
        return {"container": self.deployment.container_name}

    async def exec(self, request):
        from swerex.runtime.abstract import BashAction

        seen = await self.deployment.runtime.run_in_session(BashAction(command=request["command"], timeout=120))
        return {"stdout": seen.output, "stderr": "", "code": str(seen.exit_code)}

    async def execute(self, request):
        from swerex.runtime.abstract import Command

        seen = await self.deployment.runtime.execute(Command(command=["bash", "-c", request["command"]]))
        return {"stdout": seen.stdout, "stderr": seen.stderr, "code": str(seen.exit_code)}

    async def write(self, request):
        from swerex.runtime.abstract import UploadRequest

        with tempfile.TemporaryDirectory() as folder:
            for path, text in request["files"].items():
                with open(os.path.join(folder, os.path.basename(path)), "w") as file:
                    file.write(text)
            started = time.perf_counter()
            target = os.path.dirname(next(iter(request["files"])))
            await self.deployment.runtime.upload(UploadRequest(source_path=folder, target_path=target))
            return {"seconds": time.perf_counter() - started}

    async def read(self, request):
        from swerex.runtime.abstract import ReadFileRequest

        return {"content": (await self.deployment.runtime.read_file(ReadFileRequest(path=request["path"]))).content}

    async def close(self, request):
        await self.deployment.stop()


async def serve(peer):
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        try:
            answer = await getattr(peer, request["op"])(request) or {}
        except Exception as error:  # the judge on the other side counts it
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        answer.setdefault("seconds", time.perf_counter() - started)
        print(json.dumps(answer), file=REPLIES, flush=True)


if __name__ == "__main__":
    REPLIES = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is not an answer
    logging.disable(logging.CRITICAL)
    asyncio.run(serve({"reference": Reference, "swerex": SweRex}[sys.argv[1]](sys.argv[2])))
