"""The tables of `sandboxrl analyze` as one page with plots: self-contained, without a script, every text escaped."""

import html
from collections.abc import Mapping, Sequence

from sandboxrl.rl.reports.pages.page import ASSETS
from sandboxrl.rl.reports.tables import Runs, Table, chart_rows

COLOURS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")


def analysis_page(runs: Runs, tables: Sequence[Table], title: str) -> str:
    """The page; `tables` as `sandboxrl.rl.reports.tables.tables` makes them."""
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    by_name = {table.name: table for table in tables}
    parts = [f"<h1>{html.escape(title)}</h1>", _section("Scores with 95 % intervals", _score_plot(runs))]
    if "capabilities" in by_name:
        parts.append(
            _section("Capability use, % of turns", _table_plot(by_name["capabilities"], 0, (1, 2, 3), longest=100.0))
        )
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
    told = f'<p class="hint">{html.escape(note)}</p>' if note else ""
    return f'<section><div class="bar"><h2>{html.escape(title)}</h2></div>{body}{told}</section>'


def _table(table: Table) -> str:
    number = [any(isinstance(row[i], float) for row in table.rows) for i in range(len(table.columns))]
    look = [' class="num"' if one else "" for one in number]
    head = "".join(
        f'<th scope="col"{one}>{html.escape(name)}</th>' for name, one in zip(table.columns, look, strict=True)
    )
    rows = (
        "".join(f"<td{one}>{html.escape(table.shown(cell))}</td>" for cell, one in zip(row, look, strict=True))
        for row in table.rows
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody>"
    label = html.escape(table.title)
    return f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>{body}</table></div>'


Bar = tuple[str, float, float, float]
"""Label, value, and the ends of its interval (equal where there is none)."""


def _score_plot(runs: Runs) -> str:
    groups: dict[str, list[Bar]] = {}
    for domain, label, mode, score, low, high in chart_rows(runs):
        groups.setdefault(domain, []).append((f"{label} · {mode}", score, low, high))
    return _bars(groups, longest=100.0)


def _table_plot(table: Table, group_column: int, columns: Sequence[int], longest: float = 0.0) -> str:
    """Bars of some columns of a table; a group for each value of `group_column`."""
    groups: dict[str, list[Bar]] = {}
    for row in table.rows:
        group = str(row[group_column]) if group_column == 0 else f"{row[0]} · {row[group_column]}"
        for column in columns:
            value = row[column]
            if isinstance(value, float):
                groups.setdefault(group, []).append((table.columns[column], value, value, value))
    return _bars(groups, longest)


def _bars(groups: Mapping[str, Sequence[Bar]], longest: float = 0.0) -> str:
    """Horizontal bars in groups, true to length from 0 to `longest`, each with its interval as a line."""
    longest = longest or max((value for bars in groups.values() for _, value, _, _ in bars), default=0.0) or 1.0
    labels = list(dict.fromkeys(bar[0] for bars in groups.values() for bar in bars))
    drawn = []
    for group, bars in groups.items():
        drawn.append(f"<h3>{html.escape(group)}</h3>")
        for label, value, low, high in bars:
            colour = COLOURS[labels.index(label) % len(COLOURS)]
            a, b, c = (100 * min(max(one, 0.0), longest) / longest for one in (value, low, high))
            between = f'<u style="left:{b:.2f}%;width:{c - b:.2f}%"></u>' if c > b else ""
            meter = f'<span class="meter"><i style="width:{a:.2f}%;background:{colour}"></i>{between}</span>'
            told = f"{value:.1f}" + (f" <small>{low:.1f} to {high:.1f}</small>" if c > b else "")
            drawn.append(f'<div class="measured"><span>{html.escape(label)}</span>{meter}<b>{told}</b></div>')
    return f'<div class="bars">{"".join(drawn)}</div>'
