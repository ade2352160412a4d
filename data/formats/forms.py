"""The forms in which tasks are published: each a function from a row to a Context (for the builder) or a Task.

Every function raises InputError that says which field is wrong; the caller adds the file and the line. Facts about the
forms: a gold may be the TEXT of an option, a list of rows may be a JSON string, a text may be null, a label may come
twice, half of the golds of a set of free answers are bare numbers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxrl.data.building import Context, Question, few
from sandboxrl.data.cutting import ordered_names
from sandboxrl.data.errors import InputError
from sandboxrl.data.reading import Rejected, Row, parse_json, read_rows
from sandboxrl.data.task import REWARDS, Task, safe_name

MAX_DOCUMENT_BYTES = 16 << 20


def text_field(row: Mapping[str, Any], key: str) -> str:
    """A text that is there and not blank."""
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f"{key!r} is {'null' if value is None else type(value).__name__}, not text")
    if not value.strip():
        raise InputError(f"{key!r} is empty")
    return value


def json_field(row: Mapping[str, Any], key: str) -> Any:
    """A value that may be written as a JSON string."""
    value = row.get(key)
    if isinstance(value, str):
        try:
            return parse_json(value.encode())
        except ValueError as error:
            raise InputError(f"{key!r}: {error}") from None
    return value


# ------------------------------------------------------------------------------------------------------------- answers

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?")
_CONCLUSION = re.compile(r"\b(?:therefore|so|hence|thus),? (?:the )?(?:final )?answer is\b:?", re.I)
_OPTIONS = re.compile(
    r"\n[ \t]*(?:options|choices|answer choices)[ \t]*:[ \t]*\n(?=[ \t]*[-*•]|[ \t]*\(?[A-Z][.)])", re.I
)
_OPTION_MARK = re.compile(r"^\s*(?:[-*•]\s+|\(?[A-Z][.)]\s*)")


def free_reward(gold: str) -> str:
    """How a free answer is graded: as a number if it is one, by ROUGE-L if ROUGE-L can read it (it drops every
    character that is not ASCII), else by equality."""
    if _NUMBER.fullmatch(gold.strip()):
        return "number"
    if gold.isascii():
        return "rouge" if re.search("[A-Za-z0-9]", gold) else "exact"
    letters = [char for char in gold if char.isalnum()]
    return "rouge" if 2 * sum(char.isascii() for char in letters) >= max(len(letters), 1) else "exact"


def choice_question(text: str, options: Sequence[str], answers: Sequence[str]) -> Question:
    """A choice among `options`; `answers` are letters or texts of the right ones."""
    if len(options) < 2 or len(options) > 26:
        raise InputError(f"{len(options)} options: a choice has 2 to 26")
    same = [_same(option) for option in options]
    if len(set(same)) != len(same):
        raise InputError(f"two options are equal: {list(options)}")
    letters = []
    for answer in answers:
        if _same(answer) in same:
            letters.append(chr(ord("A") + same.index(_same(answer))))
        elif re.fullmatch(r"\(?[A-Za-z][.)]?", answer.strip()) and ord(answer.strip("(.) ").upper()) - 65 < len(
            options
        ):
            letters.append(answer.strip("(.) ").upper())
        else:
            raise InputError(f"the answer {answer!r} is none of the options {list(options)}")
    if not letters:
        raise InputError("no option is right, so silence would be the right answer")
    letters = sorted(set(letters))
    return Question(text.strip(), ", ".join(letters), "choice" if len(letters) == 1 else "choices", tuple(options))


def free_question(text: str, gold: str, others: Iterable[str] = ()) -> Question:
    """A question with a free answer; `others` are right as well."""
    golds = [other for other in dict.fromkeys(others) if other.strip() and _same(other) != _same(gold)]
    return Question(text.strip(), gold.strip(), free_reward(gold), metadata={"golds": golds} if golds else {})


def _same(text: str) -> str:
    return " ".join(text.split()).strip(".").casefold()


# --------------------------------------------------------------------------------------- instruction pre-training: seed


def collection(where: str, row: Row) -> Context:
    """A row of the seed collection of Instruction Pre-Training: context, QA_list, QA_type, rc_name."""
    pairs = json_field(row, "QA_list")
    if not isinstance(pairs, list) or not pairs:
        raise InputError("'QA_list' is not a list of questions")
    questions = []
    for i, pair in enumerate(pairs):
        try:
            questions.append(_synthesizer_pair(pair))
        except InputError as error:
            raise InputError(f"QA_list[{i}]: {error}") from None
    context = text_field(row, "context")
    name = row.get("rc_name")
    return Context(
        id=_hashed(context, *(q.text for q in questions)),
        source=name if isinstance(name, str) and name else "general",
        text=context,
        questions=tuple(questions),
        where=where,
    )


def _synthesizer_pair(pair: Any) -> Question:
    """{"Q", "A"}, {"question", "answer"} or [question, answer]. Options are inside Q and A is the text of one; a chain
    of thought is asked for at the end of Q and concluded at the end of A, and only the conclusion is kept."""
    if isinstance(pair, list) and len(pair) == 2:
        pair = {"Q": pair[0], "A": pair[1]}
    if not isinstance(pair, dict):
        raise InputError(f"not a pair but {type(pair).__name__}")
    asked = text_field(pair, "Q" if "Q" in pair else "question").replace("Let's think step by step.", "").strip()
    answer = text_field(pair, "A" if "A" in pair else "answer").strip()
    if concluded := _CONCLUSION.search(answer):
        answer = answer[concluded.end() :].strip().removesuffix(".")
    if listed := _OPTIONS.search(asked):
        lines = [line for line in asked[listed.end() :].split("\n") if line.strip()]
        options = [_OPTION_MARK.sub("", line).strip() for line in lines]
        return choice_question(asked[: listed.start()], options, [_OPTION_MARK.sub("", answer)])
    return free_question(asked, answer)


# ------------------------------------------------------------------------------------------- the paper's published rows


def published(where: str, row: Row) -> Task:
    """A row of daixuancheng/llm-in-sandbox-rl: files are chosen already and earlier questions are in the statement."""
    statement, gold = text_field(row, "problem_statement"), text_field(row, "ground_truth").strip()
    documents = json_field(row, "input_files") or {}
    if not isinstance(documents, dict):
        raise InputError(f"'input_files' is not an object but {type(documents).__name__}")
    for name, text in documents.items():
        if not isinstance(text, str):
            raise InputError(f"document {name!r} is {'null' if text is None else type(text).__name__}, not text")
    metadata = {}
    if "multiple choice" in str(row.get("qa_type") or "").lower():
        reward = "choices" if "," in gold else "choice"
        metadata["letters"] = printed_letters(statement)
    else:
        reward = "math" if str(row.get("domain", "")).startswith("math") else free_reward(gold)
    return Task(
        id=str(row.get("id") or _hashed(statement)),
        source="general",
        question=statement,
        gold=gold,
        reward=reward,
        documents=few(documents),
        metadata={key: value for key, value in metadata.items() if value},
    )


def printed_letters(statement: str) -> str:
    """The letters of options that are printed in the text, `A. ...`, `(A) ...`: A, B, C … in order, or nothing."""
    letters = ""
    for found in re.findall(r"(?m)(?:^|\s)\(?([A-Z])[.):]\s", statement):
        if found == chr(ord("A") + len(letters)):
            letters += found
    return letters if len(letters) > 1 else ""


# ------------------------------------------------------------------------------------------------ mathematics, software

_DAPO_FRAME = (
    "Solve the following math problem step by step.",
    'Remember to put your answer on its own line after "Answer:"',
)
"""How the original form opens its first line and its last one."""


def dapo(where: str, row: Row) -> Task:
    """A row of DAPO-Math-17k in the original or the processed form; the frame that asks for `Answer:` is taken off."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        prompt = next((m.get("content") for m in prompt if isinstance(m, dict) and m.get("role") == "user"), None)
    problem = text_field({"prompt": prompt}, "prompt").strip()
    first, _, rest = problem.partition("\n")
    framed, _, last = rest.rpartition("\n")
    if first.startswith(_DAPO_FRAME[0]) and last.startswith(_DAPO_FRAME[1]):
        problem = framed.strip()
    gold, graded = row.get("solution"), row.get("reward_model")
    if gold is None and isinstance(graded, dict):
        gold = graded.get("ground_truth")
    extra = row.get("extra_info")
    index = extra.get("index") if isinstance(extra, dict) else None
    return Task(
        id=str(index or _hashed(problem)),
        source="math",
        question=problem,
        gold=text_field({"answer": gold}, "answer").strip(),
        reward="math",
    )


_R2E_HIDDEN = ("/r2e_tests", "/testbed/run_tests.sh")
_R2E_COMMAND = "cd /testbed && rm -rf r2e_tests && ln -s /r2e_tests r2e_tests && bash run_tests.sh"
"""Where the published images hold their tests, in reach of the policy; and how they are run."""
R2E_PREPARE = """\
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

    Rows of one's own may bring a `repository` (name -> text, put into /testbed/documents) in the place of an image, and
    name the `test_command`, the `test_log` it writes (pytest, unittest, sympy), `test_files` (path -> text), which come
    into the sandbox only when the work is over, and `hidden_paths`, files and folders of their own image that are taken
    out of the sandbox until then.
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
        gold |= {"command": _R2E_COMMAND, "hidden": [*_R2E_HIDDEN, *hidden], "prepare": R2E_PREPARE}
    if row.get("test_log"):
        gold["log"] = row["test_log"]
    commit = str(row.get("commit_hash") or "")
    return Task(
        id=str(row.get("instance_id") or _hashed(image, commit, statement)),
        source="swe",
        question=(issue[1] if issue else statement).strip(),
        gold=json.dumps(gold, ensure_ascii=False, sort_keys=True),
        reward="tests",
        documents=few(repository),
        image=image,
        metadata={"repository": str(row.get("repo_name") or ""), "commit": commit},
    )


# --------------------------------------------------------------------------------------- sets of questions on documents


def pubmedqa(where: str, row: Row) -> Context:
    """An abstract in labelled sections and a question whose answer is yes, no or maybe."""
    sections, labels = row.get("CONTEXTS"), row.get("LABELS")
    if not isinstance(sections, list) or not sections or not all(isinstance(one, str) for one in sections):
        raise InputError("'CONTEXTS' is not a list of texts")
    if not isinstance(labels, list) or len(labels) != len(sections):
        labels = ["section"] * len(sections)
    question = choice_question(text_field(row, "QUESTION"), ("yes", "no", "maybe"), [text_field(row, "final_decision")])
    several = len(sections) > 1
    names = ordered_names([str(label) for label in labels], ".txt")
    return Context(
        id=str(row.get("id") or _hashed(*sections)),
        source="pubmedqa",
        questions=(question,),
        text="" if several else sections[0],
        documents=dict(zip(names, sections, strict=True)) if several else {},
        where=where,
    )


def qed(where: str, row: Row) -> Context:
    """A question and one paragraph of an encyclopedia."""
    annotation = row.get("annotation")
    spans = annotation.get("answer") if isinstance(annotation, dict) else None
    if not isinstance(spans, list) or not spans:
        raise InputError("'annotation' marks no answer")
    try:
        golds = [text_field(span["paragraph_reference"], "string") for span in spans]
    except (KeyError, TypeError):
        raise InputError("'annotation': an answer without a paragraph reference") from None
    text = text_field(row, "paragraph_text")
    return Context(
        id=str(row.get("example_id") or _hashed(text)),
        source="qed",
        questions=(free_question(text_field(row, "question_text") + "?", ", ".join(golds)),),
        text=text,
        title=str(row.get("title_text") or ""),
        where=where,
    )


def fairytaleqa(folder: Path, rejected: list[Rejected]) -> Iterator[Context]:
    """A folder of NAME-story.csv (section, text) and NAME-questions.csv (question, answer1 to answer6)."""
    for story in sorted(folder.rglob("*-story.csv")):
        name = story.name.removesuffix("-story.csv")
        sections = [str(row.get("text", "")) for _, row in read_rows(story, rejected)]
        questions = []
        asked = story.with_name(f"{name}-questions.csv")
        for where, row in read_rows(asked, rejected) if asked.is_file() else ():
            try:
                answers = [str(row.get(f"answer{i}") or "").strip() for i in range(1, 7)]
                gold = next(filter(None, answers), "")
                questions.append(
                    free_question(text_field(row, "question"), text_field({"answer1": gold}, "answer1"), answers)
                )
            except InputError as error:
                rejected.append(Rejected(where, str(error)))
        names = ordered_names(["section"] * len(sections), ".txt")
        files = dict(zip(names, sections, strict=True))
        yield Context(name, "fairytaleqa", tuple(questions), documents=files, where=str(story))


def wikitablequestions(folder: Path, rejected: list[Rejected]) -> Iterator[Context]:
    """A folder with a TSV of questions (id, utterance, context, targetValue) and the tables that `context` names."""
    asked: dict[str, list[Question]] = {}
    for file in sorted(folder.rglob("*.tsv")):
        for where, row in read_rows(file, rejected):
            try:
                gold = ", ".join(_unescaped(part) for part in text_field(row, "targetValue").split("|"))
                question = free_question(_unescaped(text_field(row, "utterance")), gold)
                asked.setdefault(text_field(row, "context"), []).append(question)
            except InputError as error:
                rejected.append(Rejected(where, str(error)))
    for name, questions in asked.items():
        where = f"{folder}/{name}"
        try:
            text = document(folder, name)
        except InputError as error:
            rejected.append(Rejected(where, f"{error} ({len(questions)} questions lost)"))
            continue
        yield Context(name, "wikitablequestions", tuple(questions), text=text, extension=".csv", where=where)


def _unescaped(cell: str) -> str:
    return re.sub(r"\\([np\\])", lambda match: {"n": "\n", "p": "|", "\\": "\\"}[match[1]], cell)


# ------------------------------------------------------------------------------------------------------ a person's own


def own(where: str, row: Row, folder: Path, shared: Mapping[str, str]) -> Context:
    """A row of one's own: `question` and `answer`, or an ordered list `questions` of such.

    Documents: `context` (one text), or `documents` (an object name -> text, or a list of names of files in the folder;
    names joined by `;` in a CSV), or nothing: then those of the folder. `options` makes it a choice; without them each
    of several answers is accepted. `reward` overrides the kind of grading.
    """
    row = {key: value for key, value in row.items() if value is not None and value != ""}  # empty cells of a CSV
    listed = json_field(row, "questions") if "questions" in row else [row]
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InputError("'questions' is not a list of objects")
    questions = tuple(_own_question(one) for one in listed)
    text = text_field(row, "context") if "context" in row else ""
    documents = row.get("documents", shared)
    if isinstance(documents, str):
        documents = json_field(row, "documents") if documents.lstrip()[:1] in "[{" else documents.split(";")
    if isinstance(documents, list):
        documents = {str(name): shared[name] if name in shared else document(folder, str(name)) for name in documents}
    if not isinstance(documents, Mapping) or not all(isinstance(one, str) for one in documents.values()):
        raise InputError("'documents' is neither an object of name -> text nor a list of file names")
    for name in documents:
        if not safe_name(name):
            raise InputError(f"document name {name!r} would leave the folder of documents")
    if text and "documents" in row:
        raise InputError("'context' and 'documents' are both given")
    return Context(
        id=str(row.get("id") or _hashed(text, *documents, *(question.text for question in questions))),
        source=str(row.get("source") or "files"),
        questions=questions,
        text=text,
        documents={} if text else documents,
        title=str(row.get("title") or ""),
        where=where,
    )


def _own_question(row: Row) -> Question:
    asked, answer = text_field(row, "question"), row.get("answer")
    answers = [_answer(one) for one in (answer if isinstance(answer, list) and answer else [answer])]
    options = json_field(row, "options")
    if options is not None:
        if not isinstance(options, list):
            raise InputError("'options' is not a list")
        question = choice_question(asked, [str(option) for option in options], answers)
    else:
        question = free_question(asked, answers[0], answers[1:])
    reward = row.get("reward") or question.reward
    if reward not in REWARDS:
        raise InputError(f"unknown reward {reward!r}; valid: {', '.join(REWARDS)}")
    return Question(question.text, question.gold, reward, question.options, question.metadata)


def _answer(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return text_field({"answer": value}, "answer")


def document(folder: Path, name: str) -> str:
    """The text of a file below `folder`. Never follows a name or a link out of it."""
    if not safe_name(name):
        raise InputError(f"document name {name!r} would leave the folder of documents")
    path = folder / name
    if not path.is_file():
        raise InputError(f"document {name!r} is missing")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"document {name!r} is a link that leaves the folder")
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise InputError(f"document {name!r} has more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"document {name!r} is not UTF-8 text (byte {error.start})") from None


def _hashed(*parts: str) -> str:
    """A short id of a row that has none."""
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------- table

ROW_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[str, Row], Context]]] = {
    "collection": (("context", "QA_list"), collection),
    "pubmedqa": (("QUESTION", "CONTEXTS"), pubmedqa),
    "qed": (("question_text", "paragraph_text"), qed),
}
"""Format -> (the fields by which it is known, its function)."""

FOLDER_FORMATS: dict[str, tuple[str, Callable[[Path, list[Rejected]], Iterator[Context]]]] = {
    "fairytaleqa": ("*-story.csv", fairytaleqa),
    "wikitablequestions": ("*.tsv", wikitablequestions),
}
"""Format -> (the files by which a folder is known, its function)."""
