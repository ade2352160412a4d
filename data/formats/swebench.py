"""How a row of SWE-bench is graded: the script that runs its tests, and which of them must pass.

The official harness (SWE-bench/SWE-bench @7a21e05) keeps one specification per repository and version. Here is what the
twelve repositories of SWE-bench Verified have in common, for images laid out like the official ones: the repository in
/testbed, a conda environment `testbed`. A row that brings its own `eval_script` (the harness's `make_test_spec` writes
it) is graded by that instead; such numbers are the official ones.
"""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from sandboxrl.data.errors import InputError

START, END = ">>>>> Start Test Output", ">>>>> End Test Output"
EXIT_CODE = ">>>>> Test Exit Code"
"""What the official harness reads a log by."""
PYTEST = "python -m pytest -rA --tb=no -p no:cacheprovider"
RUNNERS: dict[str, tuple[str, str]] = {
    "astropy/astropy": (PYTEST, "pytest_line"),
    "django/django": ("./tests/runtests.py --verbosity 2 --settings=test_sqlite --parallel 1", "unittest"),
    "matplotlib/matplotlib": (PYTEST, "matplotlib"),
    "mwaskom/seaborn": (PYTEST, "seaborn"),
    "pallets/flask": (PYTEST, "pytest_word"),
    "psf/requests": (PYTEST, "pytest_option"),
    "pydata/xarray": (PYTEST, "pytest_word"),
    "pylint-dev/pylint": (PYTEST, "pytest_option"),
    "pytest-dev/pytest": (PYTEST, "pytest_word"),
    "scikit-learn/scikit-learn": (PYTEST, "pytest_line"),
    "sphinx-doc/sphinx": ("tox --current-env -epy39 -v --", "pytest_line"),
    "sympy/sympy": ("PYTHONWARNINGS='ignore::UserWarning,ignore::SyntaxWarning' bin/test -C --verbose", "sympy"),
}
"""Repository -> test command and the form of its log (`envs.grading.code.test_logs`), which names the row's tests."""
RUNNER_FILES = {"django/django": ["tests/runtests.py"], "sympy/sympy": ["bin/test"]}
"""What of a repository runs its tests: never the policy's version."""
COMPILED = ("astropy/astropy", "matplotlib/matplotlib", "scikit-learn/scikit-learn")
"""Built again before their tests: a change may touch an extension module."""


def swebench_gold(row: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON value of `Task.gold` (`envs.grading.grader.TestGold`). Raises InputError for a row without tests."""
    lists = {}
    for name in ("FAIL_TO_PASS", "PASS_TO_PASS"):
        value = row.get(name)
        try:
            value = json.loads(value) if isinstance(value, str) else value  # JSON text in the data set, lists in copies
        except ValueError:
            value = None
        if not isinstance(value, list) or not all(isinstance(test, str) for test in value):
            raise InputError(f"{name!r} is not a list of tests")
        lists[name] = value
    if not lists["FAIL_TO_PASS"]:
        raise InputError("'FAIL_TO_PASS' is empty: any change would pass")
    repository = str(row.get("repo") or "")
    runner, log = RUNNERS.get(repository, (PYTEST, "pytest"))
    script = str(row.get("eval_script") or "")
    gold = {"command": script or _script(row, repository, runner), "log": str(row.get("log") or log), **lists}
    return gold | ({"from_image": RUNNER_FILES[repository]} if repository in RUNNER_FILES else {})


def _script(row: Mapping[str, Any], repository: str, runner: str) -> str:
    patch, commit = row.get("test_patch"), row.get("base_commit")
    if not isinstance(patch, str) or not patch.strip() or not isinstance(commit, str):
        raise InputError("no 'test_patch' and 'base_commit', and no 'eval_script'")
    files = re.findall(r"^diff --git a/(?:.*) b/(.*)$", patch, re.MULTILINE)
    tests = [file for file in files if file.endswith(".py")]
    if repository == "django/django":
        tests = [file.removeprefix("tests/").removesuffix(".py").replace("/", ".") for file in tests]
    if not tests:
        raise InputError("'test_patch' touches no Python test")
    quoted = " ".join(map(shlex.quote, files))
    end = "END_OF_TEST_PATCH"
    while end in patch:
        end += "_"
    build = "python -m pip install -q --no-deps --no-build-isolation -e . >/dev/null 2>&1"
    lines = [
        "source /opt/miniconda3/bin/activate testbed",
        "cd /testbed",
        *([build] if repository in COMPILED else []),
        # tests that the policy changed go back to what they were; those that the patch adds are not there yet
        f'for file in {quoted}; do git checkout -q {shlex.quote(commit)} -- "$file" 2>/dev/null || rm -f "$file"; done',
        f"git apply -v - <<'{end}'\n{patch.rstrip()}\n{end}",
        f"echo {shlex.quote(START)}",
        f"{runner} {' '.join(map(shlex.quote, tests))}",
        "code=$?",
        f"echo {shlex.quote(END)}",
        f'echo "{EXIT_CODE}: $code"',
    ]
    return "\n".join(lines) + "\n"
