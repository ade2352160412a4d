"""What a model can do in its sandbox: run a command, edit a file, finish."""

from sandboxrl.envs.tools.tool_set import ToolSet, tool_set

__all__ = ["ToolSet", "tool_set"]
