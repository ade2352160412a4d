"""A tool of your own: `tools: [bash, file_editor, finish, search_tool.py:search]`."""

import shlex

from sandboxrl import Tool, ToolRefused


async def run(sandbox, arguments, timeout_s):
    if len(arguments["word"]) < 3:
        raise ToolRefused("a word has at least 3 letters")
    command = f"grep -rniF -- {shlex.quote(arguments['word'])} documents | head -n {arguments.get('most', 20)}"
    found = await sandbox.exec(command, timeout_s=timeout_s, max_bytes=10_000)
    return found.stdout.decode(errors="replace") or "nothing found"


search = Tool(
    name="search",
    run=run,
    description="Find a word in the documents.",
    parameters={
        "word": {"type": "string", "description": "The word, in any case."},
        "most": {"type": "integer", "description": "Lines to show; 20 if left out."},
    },
    required=("word",),
)
