"""What test suites print, as a table of test -> status, and when a run of SWE-bench counts as resolved.

The published lists of SWE-bench name tests as its own log readers do, quirks included, so each reader here gives a test
the very name that the official one of its repository gives it (swebench 5.0.2; `bench.graders` compares them):

    pytest          pytest's short test summary (`-rA`) or the lines of `-v`, the whole name: R2E-Gym, one's own rows
    pytest_word     the name ends at its first space
    pytest_option   the same, and an option that is an absolute path is its last part alone
    pytest_line     the whole line is the name, its white space joined; the status may also stand at its end
    matplotlib      pytest_word, with mouse buttons by their numbers
    seaborn         PASSED and FAILED only, before or after the name
    unittest        `test_a (m.Test) ... ok` of unittest and Django; an `ok` on a later line counts too
    sympy           `test_a ok` of sympy's own runner

What a suite prints is made by the program under test. A script that prints the markers of the official harness is read
between them only, and counts for nothing when it ends with an error that no test accounts for.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from sandboxrl.data.formats.swebench import END, EXIT_CODE, START

VOID = tuple(f">>>>> {what}" for what in ("Patch Apply Failed", "Reset Failed", "Tests Errored", "Tests Timed Out"))
"""A log that holds one of these is of no run at all."""
STATUSES = ("FAILED", "PASSED", "SKIPPED", "ERROR", "XFAIL")
Seen = dict[str, str]


def resolved(log: str, script: str, output: str, fail_to_pass: Sequence[str], pass_to_pass: Sequence[str]) -> bool:
    """Whether the tests that `script` ran, with `output` in the form `log`, went as SWE-bench wants: all of
    `fail_to_pass` pass and all of `pass_to_pass` still do (or are skipped)."""
    output = without_colours(output)
    if START in script:
        if START not in output or END not in output or any(words in output for words in VOID):
            return False
        between = output.split(START)[1].split(END)[0]
        seen = READERS[log](between) or READERS[log](output)
        codes = re.findall(rf"{EXIT_CODE}:\s*(-?\d+)", output)
        if codes and int(codes[-1]) and not {"FAILED", "ERROR"} & set(seen.values()):
            return False
    else:
        seen = READERS[log](output)
    passed = all(status_of(seen, name) in ("PASSED", "XFAIL") for name in fail_to_pass)
    return passed and all(status_of(seen, name) in ("PASSED", "XFAIL", "SKIPPED") for name in pass_to_pass)


def status_of(seen: Seen, name: str) -> str:
    """The status of a test. Some published names are cut inside "[...": those match by prefix where all that match
    agree whether they passed."""
    if name in seen:
        return seen[name]
    if name.count("[") > name.count("]"):
        statuses = [status for full, status in seen.items() if full.startswith(name)]
        if statuses and len({status in ("PASSED", "XFAIL") for status in statuses}) == 1:
            return statuses[0]
    return "MISSING"


def without_colours(output: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output)


_STATUS = "PASSED|FAILED|ERROR|XFAIL|XPASS|SKIPPED"
_TEST = r"(?:\S+\.py|\S+?::\S.*?|\S+\.py::\S.*?)"
_SUMMARY = re.compile(r"^=+ short test summary info =+\s*$", re.MULTILINE)
_END = re.compile(r"^=+ .*\bin [\d.]+ ?s.*=+\s*$", re.MULTILINE)
_STATUS_FIRST = re.compile(rf"^({_STATUS}) +({_TEST})(?: - .*)?$", re.MULTILINE)
_STATUS_LAST = re.compile(rf"^({_TEST}) +({_STATUS})(?: \(.*\))?(?: +\[ *\d+%\])?\s*$", re.MULTILINE)
_BEGUN = re.compile(r"^(\S+\.py::\S+)(?:\s|$)")
_ALONE = re.compile(rf"^({_STATUS})(?: \(.*\))?(?: +\[ *\d+%\])?\s*$")
_OF_WORKER = re.compile(rf"^\[gw\d+\] \[ *\d+%\] ({_STATUS}) ({_TEST})\s*$", re.MULTILINE)


def _pytest(output: str) -> Seen:
    """What stands in the short test summary, where pytest and nothing else writes; a log without passed tests in it (no
    `-rA`) has them in the lines of `-v`. A log without a summary is one of a runner that prints such lines itself."""
    rulers = list(_SUMMARY.finditer(output))
    if not rulers:
        return _verbose(output) | {match[2].strip(): match[1] for match in _STATUS_FIRST.finditer(output)}
    end = _END.search(output, rulers[-1].end())
    summary = output[rulers[-1].end() : end.start() if end else len(output)]
    seen = {match[2].strip(): match[1] for match in _STATUS_FIRST.finditer(summary)}
    return seen if "PASSED" in seen.values() else _verbose(output[: rulers[-1].start()]) | seen


def _verbose(output: str) -> Seen:
    """`t.py::test_a PASSED [ 50%]`, or `[gw0] [ 50%] PASSED t.py::test_a` of several workers. Where a test writes to
    the terminal (`-s`, live logs) its status is the last that stands alone before the next test."""
    output = re.split(r"^=+ (?:FAILURES|ERRORS|PASSES) =+\s*$", output, maxsplit=1, flags=re.MULTILINE)[0]
    seen: Seen = {}
    begun = ""
    for line in output.splitlines():
        if named := _STATUS_LAST.match(line):
            seen[named[1].strip()], begun = named[2], ""
        elif started := _BEGUN.match(line):
            begun = started[1]
        elif begun and (alone := _ALONE.match(line)):
            seen[begun] = alone[1]
    return seen | {match[2].strip(): match[1] for match in _OF_WORKER.finditer(output)}


def _summaries(output: str) -> Iterator[list[str]]:
    """The words of each line that begins with a status and names a test."""
    for line in output.split("\n"):
        if line.startswith(STATUSES):
            words = (line.replace(" - ", " ") if line.startswith("FAILED") else line).split()
            if len(words) > 1 and not _counts_skips(words):
                yield words


def _counts_skips(words: Sequence[str]) -> bool:
    """`SKIPPED [3] tests/a.py:9: reason` names no test."""
    return words[0] == "SKIPPED" and re.fullmatch(r"\[\d+\]", words[1]) is not None


def _pytest_word(output: str) -> Seen:
    return {words[1]: words[0] for words in _summaries(output)}


def _pytest_option(output: str) -> Seen:
    return {_short_option(words[1]): words[0] for words in _summaries(output)}


def _short_option(name: str) -> str:
    found = re.match(r"(.*?)\[(.*)\]", name)
    if found is None:
        return name
    test, option = found.groups()
    if option.startswith("/") and not option.startswith("//") and "*" not in option:
        option = "/" + option.rpartition("/")[2]
    return f"{test}[{option}]"


def _pytest_line(output: str) -> Seen:
    seen: Seen = {}
    for line in output.split("\n"):
        line = re.sub(r"[\x01-\x1f]", "", re.sub(r"\[\d+m", "", line))
        if line.startswith(STATUSES):
            words = (line.split(" - ")[0] if line.startswith("FAILED") else line).split()
            if len(words) > 1 and not _counts_skips(words):
                seen[" ".join(words[1:])] = words[0]
        elif line.endswith(STATUSES) and len(words := line.split()) > 1:
            seen[" ".join(words[:-1])] = words[-1]
    return seen


def _matplotlib(output: str) -> Seen:
    return _pytest_word(output.replace("MouseButton.LEFT", "1").replace("MouseButton.RIGHT", "3"))


def _seaborn(output: str) -> Seen:
    seen: Seen = {}
    for line in output.split("\n"):
        words = line.split()
        if len(words) < 2:
            continue
        if line.startswith(("FAILED", "PASSED")) and not (line.startswith("PASSED") and " PASSED " in line):
            seen[words[1]] = line[:6]
        elif " PASSED " in line and words[1] == "PASSED":
            seen[words[0]] = "PASSED"
    return seen


def _unittest(output: str) -> Seen:
    seen: Seen = {}
    begun = ""
    for line in map(str.strip, output.split("\n")):
        if "--version is equivalent to version" in line:  # a test whose output begins on the line of its name
            seen["--version is equivalent to version"] = "PASSED"
        if " ... " in line:
            begun = line.partition(" ... ")[0]
        if found := re.fullmatch(r"(.*) \.\.\. (ok|OK| OK|FAIL|ERROR)", line):
            seen[found[1]] = {"FAIL": "FAILED", "ERROR": "ERROR"}.get(found[2], "PASSED")
        if " ... skipped" in line:
            seen[line.partition(" ... skipped")[0]] = "SKIPPED"
        for word, status in (("FAIL:", "FAILED"), ("ERROR:", "ERROR")):
            if line.startswith(word) and len(words := line.split()) > 1:
                seen[words[1]] = status
        if line.startswith("ok") and begun:
            seen[begun] = "PASSED"
    return seen


def _sympy(output: str) -> Seen:
    failures = re.findall(r"_* (.*)\.py:(.*) _*", output)
    seen: Seen = {f"{file}.py:{test}": "FAILED" for file, test in failures}
    words = {"ok": "PASSED", "F": "FAILED", "E": "ERROR"}
    for line in map(str.strip, output.split("\n")):
        if line.startswith("test_") and len(parts := line.split()) > 1 and parts[-1] in words:
            seen[parts[0]] = words[parts[-1]]
    return seen


READERS: dict[str, Callable[[str], Seen]] = {
    "pytest": _pytest,
    "pytest_word": _pytest_word,
    "pytest_option": _pytest_option,
    "pytest_line": _pytest_line,
    "matplotlib": _matplotlib,
    "seaborn": _seaborn,
    "unittest": _unittest,
    "sympy": _sympy,
}
