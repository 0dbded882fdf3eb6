"""What the reports' pages share: head and style, tables, bars, pictures as SVG inside the page."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["ALERT", "CORRECT", "INK", "SOFT", "bar", "facts", "page", "png", "records", "scrolled", "svg", "table",
           "tick_names"]  # fmt: skip

INK, ALERT, CORRECT, SOFT, _PAPER, _LINE = "#1f4e79", "#b3261e", "#c77700", "#8fb8de", "#f5f7fa", "#dfe4ea"
_STYLE = f"""
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1c2430; background: #fff;
  max-width: 58rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: .2rem 0 .6rem; letter-spacing: -.01em; }}
h2 {{ font-size: 1.25rem; line-height: 1.3; margin: 2.6rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid {_LINE}; }}
p {{ margin: .6rem 0; max-width: 44rem; }} .quiet {{ color: #5a6675; }} a {{ color: {INK}; }}
.kind {{ color: {INK}; font-size: .8rem; font-weight: 600; letter-spacing: .08em; text-transform: uppercase; }}
.scroll {{ overflow-x: auto; margin: .8rem 0; }}
table {{ border-collapse: collapse; font-size: .93rem; }}
td, th {{ padding: .38rem .9rem .38rem 0; border-bottom: 1px solid {_LINE}; text-align: left; vertical-align: top; }}
th {{ font-size: .8rem; font-weight: 600; color: #5a6675; border-bottom-color: #aeb8c4; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
th, td.number, td.name, td.drawn {{ white-space: nowrap; }} td.words {{ min-width: 11rem; }}
td.mono {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .85rem; overflow-wrap: anywhere; }}
svg {{ max-width: 100%; height: auto; display: block; }} .narrow {{ display: none; }}
.picture {{ max-width: 100%; height: auto; display: block; margin: .8rem 0; }}
.warning, .alert, .plain, .good {{ padding: .6rem 1rem; border-left: 4px solid; border-radius: 0 .3rem .3rem 0; }}
.warning {{ background: #fff5e6; border-color: {CORRECT}; }} .alert {{ background: #fdecea; border-color: {ALERT}; }}
.plain {{ background: {_PAPER}; border-color: {INK}; }} .good {{ background: #edf7ef; border-color: #2e7d4f; }}
.verdict {{ font-size: 1.2rem; font-weight: 600; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }}
.fact {{ background: {_PAPER}; border-radius: .4rem; padding: .8rem 1rem; font-size: .85rem; color: #5a6675; }}
.fact b {{ display: block; font-size: 1.45rem; line-height: 1.3; color: #1c2430; font-weight: 600; }}
.bar {{ display: inline-block; width: 7rem; height: .6rem; background: #e8edf3; border-radius: .2rem;
  margin-right: .6rem; vertical-align: baseline; position: relative; overflow: hidden; }}
.bar i {{ position: absolute; top: 0; bottom: 0; background: {INK}; border-radius: .2rem; }}
.checks {{ list-style: none; padding: 0; margin: .8rem 0; }}
.checks li {{ display: grid; grid-template-columns: 5.2rem 1fr; gap: .2rem .8rem; padding: .65rem 0;
  border-bottom: 1px solid {_LINE}; }}
.checks p {{ margin: .1rem 0; }} .mark {{ font-weight: 600; font-size: .85rem; padding-top: .1rem; }}
.passed {{ color: #2e7d4f; }} .failed {{ color: {ALERT}; }}
code {{ background: {_PAPER}; padding: .1rem .3rem; border-radius: .2rem; }}
@media (max-width: 40rem) {{
  body {{ padding: 1.2rem 1rem 3rem; }} h1 {{ font-size: 1.5rem; }} h2 {{ margin-top: 2rem; }}
  .wide {{ display: none; }} .narrow {{ display: block; }} .bar {{ width: 4.5rem; }}
  .facts {{ grid-template-columns: 1fr 1fr; gap: .5rem; }} .fact {{ padding: .6rem .7rem; }}
  .fact b {{ font-size: 1.15rem; }} .checks li {{ grid-template-columns: 1fr; }} td, th {{ padding-right: .8rem; }}
  th, td.name, td.number {{ white-space: normal; }} td.words {{ min-width: 9rem; }}
}}
@media print {{ body {{ max-width: none; }} h2 {{ break-after: avoid; }} .scroll {{ overflow: visible; }} }}
"""

_NAMESPACE = re.compile(r' xmlns(:\w+)?="[^"]*"')


def page(title: str, parts: Iterable[str]) -> bytes:
    """Return a whole page, which opens nothing from elsewhere.

    Args:
        title: Plain text.
        parts: HTML.
    """
    head = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
    )
    return "\n".join([head, *parts, "</body></html>"]).encode()


def scrolled(part: str) -> str:
    """Let what may be wider than a phone's screen scroll by itself."""
    return f"<div class='scroll'>{part}</div>"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    cells = (f"<tr><td>{html.escape(a)}</td><td class='number'>{html.escape(b)}</td></tr>" for a, b in rows)
    return scrolled(f"<table>{''.join(cells)}</table>")


def records(heads: Sequence[str], rows: Iterable[Sequence[str]], *, kinds: Sequence[str] = ()) -> str:
    """Return a table under heads.

    Args:
        heads: Plain text; none for a table without heads.
        rows: Plain text, but in columns of the kind ``drawn``, which hold HTML.
        kinds: Classes of the style for each column, such as ``number``; none for sentences.
    """
    kinds = kinds or [""] * len(heads)
    first = "".join(f"<th class='{kind}'>{html.escape(head)}</th>" for head, kind in zip(heads, kinds, strict=False))
    cells = (
        "".join(
            f"<td class='{kind}'>{cell if 'drawn' in kind else html.escape(cell)}</td>"
            for cell, kind in zip(row, kinds, strict=True)
        )
        for row in rows
    )
    return scrolled(f"<table>{f'<tr>{first}</tr>' if heads else ''}{''.join(f'<tr>{c}</tr>' for c in cells)}</table>")


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return figures with what they mean below, side by side."""
    boxes = (f"<div class='fact'><b>{html.escape(a)}</b>{html.escape(b)}</div>" for a, b in rows)
    return f"<div class='facts'>{''.join(boxes)}</div>"


def bar(low: float, high: float, label: str) -> str:
    """Return a small bar, filled from low to high of its length (shares of 1), with a label."""
    left, width = 100 * low, max(100 * (high - low), 1.0)
    if high <= low == 0:
        width = 0.0
    filled = f"<i style='left:{min(left, 99):.1f}%;width:{width:.1f}%'></i>"
    return f"<span class='bar'>{filled}</span>{html.escape(label)}"


def tick_names(tensors: Iterable[str]) -> list[str]:
    """Return what to write at an axis for tensors, whose names may be anything: short and in plain letters."""
    names = [ascii(name)[1:-1] for name in tensors]
    return [n if len(n) < 40 else f"...{n[-37:]}" for n in names]


def svg(figure: Figure, *, salt: str = "") -> str:
    """Return the picture as HTML wants it: no document type, namespaces or metadata.

    Args:
        figure: What to draw.
        salt: Tells the parts of pictures on one page apart.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": f"trigger-guard{salt}", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return _NAMESPACE.sub("", text[text.index("<svg") :])


def png(content: bytes, description: str) -> str:
    """Return a PNG inside the page."""
    encoded = base64.b64encode(content).decode()
    return f"<img class='picture' alt='{html.escape(description)}' src='data:image/png;base64,{encoded}'>"
