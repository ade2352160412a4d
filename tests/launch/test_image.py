"""The image verb: what goes into a build, and a check that says no."""

import argparse
import asyncio
import io
import tarfile

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.sandbox.docker import Docker
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, SandboxConfig
from sandboxrl.launch.__main__ import main
from sandboxrl.launch.image import ROOT, build_image, check_image, configure, write_context
from tests.rl.evaluation.test_evaluate import needs_bubblewrap

BASE = "sandboxrl/base:local"


def arguments(*words):
    parser = argparse.ArgumentParser()
    configure(parser)
    return parser.parse_args(words)


def test_the_sandbox_image_is_built_from_the_dockerfile_and_wheels_alone(tmp_path):
    (tmp_path / "numpy-1-py3-none-any.whl").write_bytes(b"x")
    context = io.BytesIO()
    write_context(context, "sandbox", tmp_path)
    context.seek(0)
    assert tarfile.open(fileobj=context).getnames() == ["Dockerfile", "wheels/numpy-1-py3-none-any.whl"]


def test_the_trainer_is_built_from_its_own_stage_and_the_files_of_this_project():
    context = io.BytesIO()
    write_context(context, "trainer", None)
    context.seek(0)
    with tarfile.open(fileobj=context) as tar:
        names = tar.getnames()
        lines = tar.extractfile("Dockerfile.trainer").read().decode().splitlines()
    assert {"pyproject.toml", "launch/setup.sh", "rl/trainer.py"} <= set(names) and not any(".git/" in n for n in names)
    assert [line for line in lines if line.startswith("FROM ")] == ["FROM ${TRAINER_BASE} AS trainer"]
    assert lines[0].startswith("ARG TRAINER_BASE=")


def test_every_python_package_of_the_image_is_pinned():
    text = (ROOT / "Dockerfile").read_text()
    packages = (
        text.split("pip install --root /packages --no-compile --no-deps")[1].split("&&")[0].replace("\\", "").split()
    )
    assert "numpy" in {package.split("==")[0] for package in packages}
    assert all("==" in package for package in packages)


def test_wrong_input_is_one_line(tmp_path):
    with pytest.raises(InputError, match="wheel"):
        build_image(arguments("build", "--wheels", str(tmp_path)))
    with pytest.raises(InputError, match="daemon"):
        build_image(arguments("build", "--socket", "/nowhere.sock"))


@pytest.mark.docker
def test_a_check_names_what_is_missing(capsys):
    try:
        asyncio.run(Docker(SandboxConfig(backend="docker", image=BASE)).inspect())
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert asyncio.run(check_image(BASE, SandboxConfig().socket)) == 1
    said = capsys.readouterr().out
    assert "FAILED  NumPy" in said and "ok      bash" in said and "digest  sha256:" in said
    with pytest.raises(BackendUnavailable, match="image build"):
        asyncio.run(check_image("sandboxrl/nowhere:never", SandboxConfig().socket))


def test_the_same_tools_are_looked_for_in_a_bubblewrap_sandbox(capsys):
    needs_bubblewrap()
    assert main(["image", "check", "--backend", "bubblewrap"]) in (0, 1)  # what this machine has
    lines = capsys.readouterr().out.splitlines()
    assert "ok      bash" in lines and any(line.startswith("limit   memory_bytes: ") for line in lines)
    assert main(["image", "check", "--rootfs", "/"]) == 2
    assert "--rootfs is of bubblewrap: add --backend bubblewrap" in capsys.readouterr().err
