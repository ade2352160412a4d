"""What a model can do in its sandbox: run a command, edit a file, finish, and whatever a user adds."""

from sandboxrl.envs.tools.tool import Tool, ToolFailed, ToolRefused
from sandboxrl.envs.tools.tool_set import ToolSet, tool_set

__all__ = ["Tool", "ToolFailed", "ToolRefused", "ToolSet", "tool_set"]
