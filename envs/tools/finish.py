"""The call that ends a task."""

from collections.abc import Mapping
from typing import Any

from sandboxrl.envs.sandbox.protocol import Sandbox
from sandboxrl.envs.tools.tool import Tool


def finish_tool(name: str, answer: str = "Finished.") -> Tool:
    async def run(sandbox: Sandbox, arguments: Mapping[str, Any], timeout_s: float) -> str:
        return answer

    return Tool(name, run, "End the task. Call it when the answer is saved.", finishes=True)
