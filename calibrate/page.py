"""What the reports' pages share: colours and style, tables, pictures as SVG inside the page."""

import html
import io
import re
from collections.abc import Iterable, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["ALERT", "CORRECT", "INK", "STYLE", "records", "svg", "table", "tick_names"]

INK, ALERT, CORRECT, _PAPER = "#1f4e79", "#b3261e", "#c77700", "#f6f7f9"
STYLE = f"""
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1e; }}
h1, h2 {{ line-height: 1.2; }} table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }} svg {{ max-width: 100%; height: auto; }}
.warning {{ background: #fff4e5; border-left: 4px solid {CORRECT}; padding: .5rem 1rem; }}
.alert {{ background: #fdecea; border-left: 4px solid {ALERT}; padding: .5rem 1rem; }}
.plain {{ background: {_PAPER}; border-left: 4px solid {INK}; padding: .5rem 1rem; }}
.verdict {{ font-size: 1.3rem; font-weight: 600; }}
code {{ background: {_PAPER}; padding: .1rem .3rem; }}
"""

_NAMESPACE = re.compile(r' xmlns(:\w+)?="[^"]*"')


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    cells = (f"<tr><td>{html.escape(a)}</td><td class='number'>{html.escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{''.join(cells)}</table>"


def records(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of sentences under heads."""
    first = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{first}</tr>{''.join(f'<tr>{c}</tr>' for c in cells)}</table>"


def tick_names(tensors: Iterable[str]) -> list[str]:
    """Return what to write at an axis for tensors, whose names may be anything: short and in plain letters."""
    names = [ascii(name)[1:-1] for name in tensors]
    return [n if len(n) < 40 else f"...{n[-37:]}" for n in names]


def svg(figure: Figure) -> str:
    """Return the picture as HTML wants it: no document type, namespaces or metadata."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": "trigger-guard", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return _NAMESPACE.sub("", text[text.index("<svg") :])
