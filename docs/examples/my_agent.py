"""A policy of your own: `sandboxrl evaluate --policy my_agent.py:agent --benchmarks aime25 --out results`.

It is given the messages of the conversation so far, in the form of OpenAI's chat API, and answers with the next one.
"""

import re


async def agent(messages, tools, seed):
    if not tools:  # mode llm: one reply
        return f"Answer: {guess(messages[-1]['content'])}"
    if messages[-1]["role"] == "tool":
        return {"tool_calls": [{"name": "finish", "arguments": {}}]}
    command = f"printf %s {guess(messages[-1]['content'])} > /testbed/answer.txt"
    return {"content": "I guess.", "tool_calls": [{"name": "bash", "arguments": {"command": command}}]}


def guess(prompt):
    """The sum where two numbers are to be added, else 7: a poor mathematician."""
    added = re.search(r"(\d+) plus (\d+)", prompt)
    return int(added[1]) + int(added[2]) if added else 7
