"""Programs: `program` is 1 if the Python code that was answered passes the unit tests of the gold, in a fresh sandbox.

The gold is JSON: `tests` (Python code that raises where something is wrong; it sees what the answer defines), and
`solution` (optional), an answer that passes, for the rehearsal and `data check`. The tests run after the answer in one
Python process, in a sandbox of their own without network, with `timeout_s` (30). They pass if they come to their end:
the last line prints a word, so that an answer which exits early passes nothing.

An answer shares that process with its tests, as in HumanEval's harness: one that sets out to can find tests and word,
and pass. Where a policy must not, put the tests into hidden files that run the work from outside.
"""

import json
import secrets
from dataclasses import dataclass

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.protocol import Kind, Means, has_gold
from sandboxrl.envs.grading.protocol.replies import last_fence, visible_reply
from sandboxrl.envs.sandbox.protocol import WORKDIR

MAX_CODE_CHARS = 200_000
_RUNNER = """\
import os, sys
names = {"__name__": "answer"}
exec(compile(open("answer.py").read(), "answer.py", "exec"), names)
os.remove("answer.py")
tests, word = sys.stdin.read().split("\\0")
exec(compile(tests, "tests.py", "exec"), names)
os.write(9, word.encode())
"""


@dataclass(frozen=True)
class ProgramGold:
    """The gold of a `program` task, as JSON in `Task.gold`."""

    tests: str
    solution: str = ""
    timeout_s: float = 30.0


def parse_gold(task: Task) -> ProgramGold:
    """Raises InputError for a gold that is not one."""
    try:
        gold = ProgramGold(**json.loads(task.gold))
        compile(gold.tests, "tests", "exec")
    except (ValueError, TypeError, SyntaxError) as error:
        raise InputError(f"task {task.id}: the gold of kind `program` is not as documented: {error}") from None
    if not gold.tests.strip():
        raise InputError(f"task {task.id}: without tests any program would pass")
    return gold


def code_of(text: str) -> str:
    """The last fenced block of a text, or all of it."""
    fence = last_fence(text)
    return text if fence is None else fence


async def _grade(task: Task, answer: str, means: Means) -> float:
    gold, code = parse_gold(task), code_of(answer)
    if means.fresh is None:
        raise InputError(f"task {task.id} is graded by running a program, which needs a sandbox")
    if len(code) > MAX_CODE_CHARS:
        return 0.0
    word = secrets.token_hex(16)
    async with means.fresh(task.image) as sandbox:
        files = {"answer.py": code, ".runner.py": _RUNNER, ".tests": f"{gold.tests}\n\0{word}"}
        await sandbox.write({f"{WORKDIR}/{name}": text.encode("utf-8", "replace") for name, text in files.items()})
        # the tests come by standard input, from a file that is gone before the answer runs
        command = "exec 9>.passed 8<.tests; rm .tests; python3 -I .runner.py <&8 >/dev/null 2>&1; cat .passed"
        done = await sandbox.exec(command, timeout_s=gold.timeout_s)
    return float(not done.timed_out and done.stdout.decode(errors="replace") == word)


async def _ready(task: Task, means: Means) -> None:
    if means.fresh is None:
        raise InputError(f"task {task.id} is graded by running a program, which needs a sandbox")


def _check(task: Task) -> None:
    has_gold(task)
    parse_gold(task)


PROGRAM = Kind(
    grade=_grade,
    check=_check,
    ready=_ready,
    extract=lambda task, reply: code_of(visible_reply(reply)),
    gold=lambda task: parse_gold(task).solution or None,
    wrong=lambda task: "def zyzzyva():\n    return None\n",
    ask="The answer is Python code and nothing else.",
    needs="sandbox",
)
