"""One HTML page that needs nothing else: tables, bars, curves, thumbnails, sounds, all inline."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

# Colours by role, so that the same thing looks the same in every figure of a page.
COLOURS = {"model": "#2563eb", "floor": "#94a3b8", "optimum": "#059669", "loss": "#b45309"}

STYLE = """
:root{color-scheme:light;--ink:#0f172a;--soft:#64748b;--line:#e2e8f0}
*{box-sizing:border-box}
body{margin:0;background:#f8fafc;color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:980px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.02em;margin:0 0 8px}
h2{font-size:19px;margin:0 0 6px}h3{font-size:15px;margin:22px 0 8px}
p{margin:0 0 12px;max-width:74ch}.soft{color:var(--soft);font-size:14px}
section{background:#fff;border:1px solid var(--line);border-radius:14px;padding:22px 24px;
 margin-top:18px}
.figures{display:flex;flex-wrap:wrap;gap:12px;margin-top:20px}
.figure{flex:1 1 150px;background:#fff;border:1px solid var(--line);border-radius:14px;
 padding:14px 18px}
.figure b{display:block;font-size:26px;letter-spacing:-.02em}
.figure span{color:var(--soft);font-size:14px;line-height:1.35;display:block}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{text-align:left;color:var(--soft);font-weight:500}
th,td{padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap}tr:last-child td{border-bottom:0}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:7px 12px;
 align-items:center;font-size:14px;font-variant-numeric:tabular-nums;margin:6px 0 10px}
.bars i{display:block;height:16px;border-radius:4px;min-width:2px}
.bars .model{font-weight:600}
svg.plot{width:100%;height:auto;display:block}
.shelf{display:flex;flex-wrap:wrap;gap:10px;margin:0 0 6px}
.card{width:112px;font-size:12.5px;line-height:1.35}.card.wide{width:164px}
.card.wide small{margin-top:4px}
.card .pic{position:relative;width:72px;height:72px}
.card img,.card .none{width:72px;height:72px;border-radius:10px;border:1px solid var(--line);
 display:block;image-rendering:auto}
.card .none{background:#f1f5f9;color:var(--soft);font-size:11px;display:grid;
 place-items:center;text-align:center}
.card button{position:absolute;right:-8px;bottom:-6px;width:26px;height:26px;border-radius:50%;
 border:1px solid var(--line);background:#fff;cursor:pointer;font-size:13px;padding:0}
.card b{display:block;font-weight:600;margin-top:7px;overflow-wrap:anywhere}
.card small{color:var(--soft);display:block}
.card.hit img,.card.hit .none{outline:3px solid #059669;outline-offset:2px}
.card.hit .mark{color:#047857;font-weight:600;display:block}
code,pre{font:13px/1.5 ui-monospace,"SFMono-Regular",Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{background:#f1f5f9;border-radius:10px;padding:12px 14px;overflow:auto;margin:0 0 12px}
footer{color:var(--soft);font-size:13px;margin-top:24px}
"""


def page(title: str, lead: str, *blocks: str) -> str:
    """The whole document, as text. `title` and `lead` are plain; `blocks` are of this module."""
    head = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
    )
    top = f"<h1>{escape(title)}</h1>{paragraph(lead)}"
    return f"{head}<body><main>{top}{''.join(blocks)}</main></body></html>\n"


def section(heading: str, *blocks: str) -> str:
    """A white box with a heading."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(blocks)}</section>"


def paragraph(text: str, soft: bool = False) -> str:
    """Plain text."""
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def code(text: str) -> str:
    """Commands or Python, as it is."""
    return f"<pre>{escape(text)}</pre>"


def figures(rows: Iterable[tuple[str, str]]) -> str:
    """The few numbers to see first: (value, what it is)."""
    cells = (f"<div class=figure><b>{escape(v)}</b><span>{escape(w)}</span></div>" for v, w in rows)
    return f"<div class=figures>{''.join(cells)}</div>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Cells as text; floats get four digits; numbers stand right."""
    rows = [list(row) for row in rows]
    right = [all(_number(row[i]) for row in rows) for i in range(len(header))]

    def line(tag: str, cells: Sequence[Any]) -> str:
        kinds = (" class=n" if r else "" for r in right)
        texts = (f"<{tag}{k}>{escape(_cell(x))}</{tag}>" for k, x in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(texts)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"


def _number(cell: Any) -> bool:
    return isinstance(cell, int | float) or cell in ("", "–")


def _cell(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.4f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def bars(rows: Iterable[tuple[str, float, str]], most: float | None = None) -> str:
    """(label, value, kind): one bar a row, `kind` a key of COLOURS; `most` is the full width."""
    rows = list(rows)
    most = most or max((value for _, value, _ in rows), default=0.0) or 1.0
    lines = (
        f'<span class="{escape(kind)}">{escape(label)}</span>'
        f'<i style="width:{100 * max(value, 0.0) / most:.1f}%;background:{COLOURS[kind]}"></i>'
        f'<span class="{escape(kind)}">{value:.4f}</span>'
        for label, value, kind in rows
    )
    return f"<div class=bars>{''.join(lines)}</div>"


def curves(
    loss: tuple[Sequence[float], Sequence[float]],
    validation: tuple[Sequence[float], Sequence[float]],
    metric: str,
    levels: dict[str, tuple[float, str]] | None = None,
    chosen: float | None = None,
) -> str:
    """Training loss and a validation metric by step, side by side, as inline SVG.

    loss, validation: (steps, values). levels {label: (value, kind)}: horizontal lines to compare
    with. chosen: the step whose parameters were kept.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*loss, color=COLOURS["loss"], linewidth=1.6)
    left.set_title("training loss", loc="left", fontsize=10)
    right.plot(*validation, color=COLOURS["model"], linewidth=1.8, marker="o", markersize=3)
    right.set_title(f"validation {metric}", loc="left", fontsize=10)
    for label, (value, kind) in (levels or {}).items():
        right.axhline(value, color=COLOURS[kind], linewidth=1.2, linestyle="--")
        right.annotate(
            label, (1, value), (0, 3), xycoords=("axes fraction", "data"), ha="right",
            textcoords="offset points", fontsize=8.5, color=COLOURS[kind],
        )  # fmt: skip
    if chosen is not None:
        right.axvline(chosen, color=COLOURS["floor"], linewidth=1, linestyle=":")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8.5, colors="#64748b")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#cbd5e1")
    return _svg(figure)


def _svg(figure: Any) -> str:
    """The figure as an <svg> element with real text, the same bytes for the same figure."""
    import matplotlib

    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "zoo"}):
        figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    text = out.getvalue()
    return text[text.index("<svg") :].replace("<svg", '<svg class="plot"', 1)


def picture(source: str | Path | None, side: int = 96) -> str:
    """A thumbnail, inline PNG; a grey field where there is no image."""
    if not source:
        return "<span class=none>no image</span>"
    from PIL import Image

    out = io.BytesIO()
    with Image.open(source) as image:
        image = image.convert("RGB")
        scale = side / max(image.size)
        size = [max(1, round(edge * scale)) for edge in image.size]
        image.resize(size, Image.Resampling.BICUBIC).save(out, "PNG", optimize=True)
    return f'<img alt="" src="{_inline(out.getvalue(), "image/png")}">'


def sound(source: str | Path | None) -> str:
    """A small button that plays the WAV file, which stands inline; nothing where there is none."""
    if not source:
        return ""
    inline = _inline(Path(source).read_bytes(), "audio/wav")
    return (
        '<button title="play the sound" onclick="this.firstElementChild.play()">'
        f'<audio src="{inline}"></audio>♪</button>'
    )


def _inline(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def card(
    title: str,
    image: str | Path | None = None,
    audio: str | Path | None = None,
    notes: Sequence[str] = (),
    mark: str = "",
    wide: bool = False,
) -> str:
    """One item: picture, sound, title, small notes; `mark` frames it and says why."""
    told = "".join(f"<small>{escape(note)}</small>" for note in notes)
    marked = f"<span class=mark>{escape(mark)}</span>" if mark else ""
    pic = f"<div class=pic>{picture(image)}{sound(audio)}</div>"
    kind = "card" + (" hit" if mark else "") + (" wide" if wide else "")
    return f'<div class="{kind}">{pic}<b>{escape(title)}</b>{marked}{told}</div>'


def shelf(cards: Iterable[str]) -> str:
    """Cards side by side."""
    return f"<div class=shelf>{''.join(cards)}</div>"
