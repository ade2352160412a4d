"""General tasks: from a context with an ordered list of questions to Tasks, as the paper builds them (section 4.1).

    several documents, or a long one      separate, sensibly named files (`split_document`)
    a context that is one file            distractor files from the same data set (`Distractors`)
    the questions, in their fixed order   one is the task, those before it are examples in the prompt
    placement                             `sandbox` or `prompt`: the same task, the same bytes

Everything random is a function of (seed, data set, context id), so the same input gives the same bytes in every process
and whatever stands before or after it in the file.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from sandboxrl.data.context import BuildConfig, Context, Question, context_files, plain, weak
from sandboxrl.data.cutting import document_names
from sandboxrl.data.distractors import Distractors
from sandboxrl.data.errors import InputError
from sandboxrl.data.reading import Rejected
from sandboxrl.data.task import Task

MIN_TELLING_WORDS = 3
"""An answer of fewer words ("yes", "two years") may stand in an earlier question by chance."""


def build_tasks(
    read: Callable[[list[Rejected]], Iterable[Context]], config: BuildConfig, rejected: list[Rejected]
) -> Iterator[Task]:
    """Tasks of the contexts that `read` gives, in their order.

    `read` is called twice, first to choose the candidates for distractors, so nothing but those is held in memory. It
    gets the list for the rows it cannot read. A context that no task can be made of is appended to `rejected` too.
    """
    distractors = Distractors(read([]) if config.num_distractors else (), config)
    for context in read(rejected):
        where = context.where or f"{context.source} {context.id}"
        rejected.extend(Rejected(where, one) for one in context.lost)
        try:
            yield from _tasks(context, distractors, config)
        except InputError as error:
            rejected.append(Rejected(where, str(error)))


def _tasks(context: Context, distractors: Distractors, config: BuildConfig) -> Iterator[Task]:
    questions = context.questions
    if not questions:
        raise InputError("the context has no questions")
    rng = random.Random(f"{config.seed}/{context.source}/{context.id}")
    own = context_files(context, config)
    for chosen in _test_questions(questions, config.tasks_per_context, rng):
        question = questions[chosen]
        files = own
        if len(own) == 1 and context.text and config.num_distractors:
            files = distractors.around(context, own, question, rng)
        if gives_away(files, question):
            files = document_names(list(files.values()), [], context.extension)
        first = max(0, chosen - config.max_examples) if config.max_examples else 0
        yield Task(
            id=f"{context.id}/{chosen}" if len(questions) > 1 else context.id,
            source=context.source,
            question=question.text,
            gold=question.gold,
            reward=question.reward,
            documents=files,
            examples=tuple(one.as_example() for one in questions[first:chosen]),
            options=question.options,
            placement=config.placement,
            metadata={**question.metadata, "num_own_files": len(own)},
        )


def _test_questions(questions: Sequence[Question], num: int, rng: random.Random) -> list[int]:
    """Positions of up to `num` test tasks, drawn without those whose answer an earlier question shows."""
    order = rng.sample(range(len(questions)), len(questions))
    fair = (i for i in order if not shown_before(questions[i], [one.as_example() for one in questions[:i]]))
    return sorted(itertools.islice(fair, num))  # the first question has no examples, so there is always one


def shown_before(question: Question, examples: Iterable[tuple[str, str]]) -> bool:
    """True if an example asks the same question, or a telling answer stands in one word for word."""
    asked = plain(question.as_example()[0])
    telling = [gold for gold in question.evidence if len(gold.split()) >= MIN_TELLING_WORDS]
    for text, answer in examples:
        shown = plain(text)
        if shown == asked or any(gold in shown or gold in plain(answer) for gold in telling):
            return True
    return False


def gives_away(files: Iterable[str], question: Question) -> bool:
    """True if a file name holds the answer."""
    words = [plain(name.replace("_", " ")) for name in files]
    return any(gold in name for gold in question.evidence if not weak(gold) for name in words)
