"""One self-contained HTML file: style, script, what it shows as JSON, and its trajectories in compressed chunks.

Everything a trajectory says is hostile text. It travels in a JSON block whose `<` is escaped or in base64, the script
puts it on the page as text only, and the page's content policy allows the one script known by its hash and no request
at all. The chunks stand last: the page is drawn while they are still being read.
"""

import base64
import hashlib
import html
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandboxrl.data.files import write_whole
from sandboxrl.rl.reports.pages.bundle import Bundle
from sandboxrl.rl.reports.pages.excerpt import as_json

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("words", "charts", "store", "list", "text", "tokens", "explorer", "tables", "page")
"""The parts of the one script, in their order."""


def page(content: Mapping[str, Any], bundle: Bundle) -> str:
    """The HTML of `content` (see the files of `assets/` for what they read of it) and the trajectories of `bundle`."""
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    parts = [(ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = "".join(['"use strict";\n(() => {\n', *parts, "})();\n"])
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    block = as_json({**content, "index": bundle.index, "made": time.strftime("%Y-%m-%d %H:%M:%S")})
    chunks = [
        f'<script type="text/plain" id="{kind}{i}">{packed}</script>\n'
        for kind, packs in (("text", bundle.text), ("tokens", bundle.tokens))
        for i, packed in enumerate(packs)
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{known}'; \
style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(str(content["title"]))} · sandboxrl</title>
<style>
{style}</style>
</head>
<body>
<noscript>This page draws itself with its own script; nothing is fetched. Allow scripts to read it.</noscript>
<main id="page"></main>
<script type="application/json" id="content">{block}</script>
<script>{script}</script>
{"".join(chunks)}</body>
</html>
"""


def write_page(path: Path, text: str) -> Path:
    """Write the page, replacing the file whole, so that a person may look at it meanwhile."""
    write_whole(path, text.encode("utf-8", errors="replace"))
    return path
