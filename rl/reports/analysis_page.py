"""The tables of `sandboxrl analyze` as one page with plots: self-contained, without a script, every text escaped."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandboxrl.rl.reports.tables import Runs, Table, chart_rows

_STYLE = """
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 550; }
section { margin-top: 36px; overflow-x: auto; }
section > h2 { margin-bottom: 10px; }
.note { color: var(--soft); font-size: 13px; margin-top: 6px; }
svg text { fill: var(--ink); font: 12px var(--sans); }
svg .soft { fill: var(--soft); }
svg line { stroke: var(--ink); }
svg .grid { stroke: var(--line); }
"""
COLOURS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")
ROW, LEFT, WIDTH = 18, 250, 520


def analysis_page(runs: Runs, tables: Sequence[Table], title: str) -> str:
    """The page; `tables` as `sandboxrl.rl.reports.tables.tables` makes them."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8") + _STYLE
    by_name = {table.name: table for table in tables}
    parts = [f"<h1>{html.escape(title)}</h1>", _section("Scores with 95 % intervals", _score_plot(runs))]
    if "capabilities" in by_name:
        parts.append(_section("Capability use, % of turns", _table_plot(by_name["capabilities"], 0, (1, 2, 3))))
    if "tokens" in by_name:
        parts.append(_section("Tokens per query, thousands", _table_plot(by_name["tokens"], 1, (2, 3))))
    parts += [_section(table.title, _table(table), table.note) for table in tables]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )


def _section(title: str, body: str, note: str = "") -> str:
    told = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{body}{told}</section>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = ("".join(f"<td>{html.escape(table.shown(cell))}</td>" for cell in row) for row in table.rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


Bar = tuple[str, float, float, float]
"""Label, value, and the ends of its interval (equal where there is none)."""


def _score_plot(runs: Runs) -> str:
    groups: dict[str, list[Bar]] = {}
    for domain, label, mode, score, low, high in chart_rows(runs):
        groups.setdefault(domain, []).append((f"{label} · {mode}", score, low, high))
    return _bars(groups, longest=100.0)


def _table_plot(table: Table, group_column: int, columns: Sequence[int]) -> str:
    """Bars of some columns of a table; a group for each value of `group_column`."""
    groups: dict[str, list[Bar]] = {}
    for row in table.rows:
        group = str(row[group_column]) if group_column == 0 else f"{row[0]} · {row[group_column]}"
        for column in columns:
            value = row[column]
            if isinstance(value, float):
                groups.setdefault(group, []).append((table.columns[column], value, value, value))
    return _bars(groups)


def _bars(groups: Mapping[str, Sequence[Bar]], longest: float = 0.0) -> str:
    """Horizontal bars in groups, each with its interval as a line."""
    longest = longest or max((value for bars in groups.values() for _, value, _, _ in bars), default=0.0) or 1.0
    labels = list(dict.fromkeys(bar[0] for bars in groups.values() for bar in bars))
    drawn, y = [], 0
    for group, bars in groups.items():
        y += ROW + 4
        drawn.append(f'<text x="0" y="{y - 6}" font-weight="600">{html.escape(group[:60])}</text>')
        for label, value, low, high in bars:
            colour = COLOURS[labels.index(label) % len(COLOURS)]
            middle, (a, b, c) = y + ROW / 2, (LEFT + WIDTH * min(one, longest) / longest for one in (value, low, high))
            drawn.append(
                f'<text class="soft" x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">{html.escape(label[:40])}</text>'
            )
            drawn.append(f'<rect x="{LEFT}" y="{y + 3}" width="{a - LEFT:.1f}" height="{ROW - 6}" fill="{colour}"/>')
            if c > b:
                drawn.append(f'<line x1="{b:.1f}" x2="{c:.1f}" y1="{middle}" y2="{middle}"/>')
            drawn.append(f'<text x="{max(a, c) + 6:.1f}" y="{middle + 4}">{value:.1f}</text>')
            y += ROW
    grid = f'<line class="grid" x1="{LEFT}" x2="{LEFT}" y1="0" y2="{y}"/>'
    width = LEFT + WIDTH + 60
    return f'<svg viewBox="0 0 {width} {y + 6}" width="{width}" role="img">{grid}{"".join(drawn)}</svg>'
