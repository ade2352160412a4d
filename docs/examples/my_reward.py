"""Rewards of your own: `reward: my_reward.py:no_longer` in a row, or `grader.kinds.rouge=my_reward.py:SHORT`."""

from sandboxrl.envs.grading import Kind


def no_longer(task, answer, sandbox):
    """1 for the gold in any case, half of it for an answer that holds the gold among other words."""
    gold, said = task.gold.casefold(), answer.casefold().strip()
    return 1.0 if said == gold else 0.5 * (gold in said)


async def tidy(task, answer, sandbox):
    """Looks at the computer itself: what the policy left behind, beside its answer."""
    if sandbox is None:  # LLM mode, where there is none
        return no_longer(task, answer, sandbox)
    left = await sandbox.exec("ls -A | grep -vxE 'answer.txt|documents' | wc -l")
    return no_longer(task, answer, sandbox) / (1 + int(left.stdout))


SHORT = Kind(score=no_longer, ask="The answer is one or two words.")
"""A Kind also says how a prompt asks for the answer, how it is read out of a reply, and what is right and wrong."""
