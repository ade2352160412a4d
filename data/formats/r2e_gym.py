"""A row of R2E-Gym, or a user's own in its form: a repository, its tests and what each of them must say."""

import json
import re
from typing import Any

from sandboxrl.data.context import few
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import json_field, text_field
from sandboxrl.data.reading import Row
from sandboxrl.data.task import Task

_HIDDEN = ("/r2e_tests", "/testbed/run_tests.sh")
_COMMAND = "cd /testbed && rm -rf r2e_tests && ln -s /r2e_tests r2e_tests && bash run_tests.sh"
"""Where the published images hold their tests, in reach of the policy; and how they are run."""
PREPARE = """\
if [ -e .git ]; then
    git clone -q --bare --depth 1 "file://$PWD" .git-of-this-commit
    rm -rf .git
    mv .git-of-this-commit .git
    git config core.bare false
    git remote remove origin
    git reset -q
fi
"""
"""The history of the repository goes on beyond the task, to the commit that solves it, with its tests. What is left is
the one commit that is checked out; the working tree stays as it is."""


def r2e_gym(where: str, row: Row) -> Task:
    """A row of R2E-Gym: one image per task, the repository in /testbed, its tests and what each of them must say.

    A user's own rows may bring a `repository` (name -> text, put into /testbed/documents) instead of an image, and
    name the `test_command`, the `test_log` it writes (pytest, unittest, sympy), `test_files` (path -> text), which come
    into the sandbox only when the work is over, `test_where` (a `fresh` sandbox, or the `same`), and `hidden_paths`,
    files and folders of their own image that are taken out of the sandbox until then.
    """
    statement = text_field(row, "problem_statement")
    issue = re.search(r"\[ISSUE\](.*)\[/ISSUE\]", statement, re.S)
    expected = json_field(row, "expected_output_json")
    if not isinstance(expected, dict) or not all(isinstance(status, str) for status in expected.values()):
        raise InputError("'expected_output_json' is not an object of test statuses")
    expected = {name.split(" - ")[0]: status for name, status in expected.items() if name.strip()}
    if not expected:
        raise InputError("'expected_output_json' names no test, so any state of the code would pass")
    files = json_field(row, "test_files") or {}
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise InputError("'test_files' is not an object of path -> text")
    repository = json_field(row, "repository") or {}
    if not isinstance(repository, dict) or not all(isinstance(text, str) for text in repository.values()):
        raise InputError("'repository' is not an object of name -> text")
    image = "" if repository and not row.get("docker_image") else text_field(row, "docker_image")
    hidden = json_field(row, "hidden_paths") or []
    if not isinstance(hidden, list) or not all(isinstance(path, str) and path.startswith("/") for path in hidden):
        raise InputError("'hidden_paths' is not a list of absolute paths")
    gold: dict[str, Any] = {"command": row.get("test_command"), "expected": expected, "files": files, "hidden": hidden}
    if not gold["command"]:
        gold |= {"command": _COMMAND, "hidden": [*_HIDDEN, *hidden], "prepare": PREPARE}
    for field, key in (("test_log", "log"), ("test_where", "where")):
        if row.get(field):
            gold[key] = row[field]
    commit = str(row.get("commit_hash") or "")
    return Task(
        id=str(row.get("instance_id") or digest(image, commit, statement)),
        source="swe",
        question=(issue[1] if issue else statement).strip(),
        gold=json.dumps(gold, ensure_ascii=False, sort_keys=True),
        reward="tests",
        documents=few(repository),
        image=image,
        metadata={"repository": str(row.get("repo_name") or ""), "commit": commit},
    )
