"""`sandboxrl image build|check`: make the sandbox image, and show that a sandbox has what tasks may count on."""

import argparse
import asyncio
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from sandboxrl.data.errors import InputError
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, SandboxConfig

ROOT = Path(__file__).resolve().parents[1]
TAGS = {"sandbox": SandboxConfig().image, "trainer": "sandboxrl/trainer:latest"}
DOCKERFILES = {"sandbox": "Dockerfile", "trainer": "Dockerfile.trainer"}
MAX_BYTES = 1_100_000_000
"""What the paper's image takes."""

TOOLS = {
    # what a task may count on: the command that shows it
    "bash": "bash --version",
    "Python 3.11 or newer": "python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'",
    "NumPy": "python3 -c 'import numpy as n; assert (n.eye(3) @ n.ones(3)).sum() == 3'",
    "SciPy": "python3 -c 'from scipy.special import comb; assert comb(6, 3) == 20'",
    "SymPy": "python3 -c 'import sympy as s; x = s.Symbol(\"x\"); assert s.integrate(2 * x, x) == x ** 2'",
    "Matplotlib": "python3 -c 'import matplotlib.pyplot as p; p.plot([1]); p.savefig(\"/tmp/p.png\")'",
    "pip": "python3 -m pip --version",
    "git": "git init -q /tmp/r && git -C /tmp/r status",
    "compiler": "printf 'int main(){return 0;}' > /tmp/a.c && gcc -o /tmp/a /tmp/a.c && /tmp/a",
    "text tools": "echo a | sort | sed s/a/c/ | awk '{print $1}' | grep -c . && rg --version && jq --version",
    "archives": "cd /tmp && echo x > f && zip -q f.zip f && unzip -tq f.zip && tar czf f.tgz f && tar xzf f.tgz",
    "network clients": "curl --version && wget --version",
    "databases": "sqlite3 :memory: 'select 1'",
    "package manager": "apt-get --version",
    "packages of Python": "mkdir -p /tmp/p/tt && cd /tmp/p && touch tt/__init__.py && "
    "printf '[project]\\nname=\"tt\"\\nversion=\"1\"\\n[project.scripts]\\ntt=\"os:getpid\"\\n' > pyproject.toml"
    " && python3 -m pip install -q --no-index --no-build-isolation . && type tt",
    "its share of cores": "test \"$(nproc)\" = \"$OMP_NUM_THREADS\"",
    "its share of memory": "test \"$(free -b | awk '/Mem/ {print $2}')\" = \"$MEMORY_BYTES\"",
    "working directory": "test \"$PWD\" = /testbed && touch /testbed/x",
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser("build", help="build the image with the Dockerfile of this project")
    build.add_argument("--target", choices=sorted(TAGS), default="sandbox")
    build.add_argument("--base", help="base image; by digest to pin it; default: the Dockerfile's")
    build.add_argument(
        "--extra", choices=("cpu", "gpu"), default="gpu", help="of the trainer: whose builds of torch and vLLM"
    )
    build.add_argument("--tag", help=f"name of the image; default: {' or '.join(TAGS.values())}")
    build.add_argument("--wheels", type=Path, help="folder of Python wheels to install from instead of a package index")
    check = actions.add_parser("check", help="size, digest, and the tools that must work inside")
    check.add_argument("image", nargs="?", default=TAGS["sandbox"])
    check.add_argument(
        "--backend", choices=("docker", "bubblewrap"), default="docker", help="whose sandboxes are tried"
    )
    check.add_argument("--rootfs", default="", help="of bubblewrap: a root filesystem folder in place of the host's")
    for action in (build, check):
        action.add_argument("--socket", default=SandboxConfig().socket, help="Docker API socket")


def run(args: argparse.Namespace) -> int:
    return build_image(args) if args.action == "build" else asyncio.run(check(args))


def build_image(args: argparse.Namespace) -> int:
    """Build one target; the daemon's own words are shown as they come."""
    import docker
    from docker.errors import DockerException

    if not (ROOT / "Dockerfile").is_file():
        raise InputError("image build needs a checkout of sandboxrl: the installed package has no Dockerfile")
    tag = args.tag or TAGS[args.target]
    if args.wheels and not list(args.wheels.glob("*.whl")):
        raise InputError(f"--wheels {args.wheels}: no wheel there")
    arguments = {"EXTRA": args.extra} if args.target == "trainer" else {}
    if args.base:
        arguments["BASE" if args.target == "sandbox" else "TRAINER_BASE"] = args.base
    try:
        client = docker.APIClient(base_url=f"unix://{args.socket}", timeout=3600)
        client.ping()
    except DockerException as error:
        raise BackendUnavailable(
            f"no Docker daemon at {args.socket} ({error}); start one with: sudo dockerd &"
        ) from error
    with tempfile.TemporaryFile() as context:
        write_context(context, args.target, args.wheels)
        context.seek(0)
        for line in client.build(
            fileobj=context, custom_context=True, dockerfile=DOCKERFILES[args.target], target=args.target, tag=tag,
            buildargs=arguments, rm=True, decode=True,
        ):  # fmt: skip
            print(line.get("stream", ""), end="", flush=True)
            if "error" in line:
                print(f"sandboxrl image: {line['error'].strip()}")
                return 1
    found = client.inspect_image(tag)
    print(f"{tag}: {found['Id']}, {found['Size'] / 1e6:.0f} MB")
    return 0


def write_context(context: IO[bytes], target: str, wheels: Path | None) -> None:
    """What the daemon gets: the Dockerfile, the wheels, and for the trainer the files of this project."""
    with tarfile.open(fileobj=context, mode="w") as tar:
        names = ["Dockerfile"]
        if target == "trainer":
            text = trainer_dockerfile().encode()
            entry = tarfile.TarInfo(DOCKERFILES[target])
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
            listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True)
            names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
        for name in names:
            tar.add(ROOT / name, arcname=name)
        for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
            tar.add(wheel, arcname=f"wheels/{wheel.name}")


def trainer_dockerfile() -> str:
    """The trainer's part alone: a daemon without BuildKit makes every stage before the one that it is asked for."""
    before, stage, rest = (ROOT / "Dockerfile").read_text().partition("FROM ${TRAINER_BASE}")
    return "\n".join([line for line in before.splitlines() if line.startswith("ARG TRAINER_BASE")] + [stage + rest])


async def check(args: argparse.Namespace) -> int:
    """1 when something is missing."""
    if args.backend == "bubblewrap":
        return await check_tools(SandboxConfig(backend="bubblewrap", rootfs=args.rootfs))
    if args.rootfs:
        raise InputError("--rootfs is of bubblewrap: add --backend bubblewrap")
    return await check_image(args.image, args.socket)


async def check_image(image: str, socket: str) -> int:
    """Print what the image is, and check its tools. 1 when something is missing."""
    from sandboxrl.envs.sandbox.docker import Docker

    config = SandboxConfig(backend="docker", image=image, socket=socket)
    backend = Docker(config)
    try:
        found = await backend.inspect(image)
    finally:
        await backend.close()
    fits = found["Size"] <= MAX_BYTES
    print(f"image   {image}\ndigest  {found['Id']}")
    print(f"size    {found['Size'] / 1e6:.0f} MB of {MAX_BYTES / 1e6:.0f} MB: {'ok' if fits else 'TOO LARGE'}")
    return max(await check_tools(config), int(not fits))


async def check_tools(config: SandboxConfig) -> int:
    """Run every tool once, in a sandbox as tasks get one, and print how its limits are held. 1 when one is missing."""
    from sandboxrl.envs.sandbox.pool import open_backend

    backend, told = open_backend(config), {"MEMORY_BYTES": str(config.limits.memory_bytes)}
    try:
        box = await backend.start()
        try:
            missing = []
            for tool, command in TOOLS.items():
                result = await box.exec(command, timeout_s=120, env=told)
                print(f"{'ok' if result.exit_code == 0 else 'FAILED':7} {tool}")
                if result.exit_code != 0:
                    missing.append(tool)
                    print(result.stderr.decode(errors="replace").strip()[-500:])
        finally:
            await box.close()
    finally:
        await backend.close()
    describe = getattr(backend, "describe_limits", dict)
    for limit, held in describe().items():
        print(f"limit   {limit}: {held}")
    return int(bool(missing))
