"""One page that shows what trained models make: a single file, with everything in it and nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import math
import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.models.family import Family, Figure, Panel, Paths, Pictures, Planes, Score, Texts, side_by_side
from scratchgen.training import pictures, runs
from scratchgen.training.folder import FILM, kept_samples, write_whole
from scratchgen.training.media import MEDIA
from scratchgen.training.runs import Run


def page(path: Path, shown: Sequence[tuple[Run, dict[str, float]]]) -> None:
    """Write the page that shows these runs, each with its scores, to `path`."""
    sections = [_section(run, scores) for run, scores in shown]
    total = sum(_seconds(run) for run, _ in shown)
    machine = f"Python {platform.python_version()}, NumPy {np.__version__}, {os.cpu_count()} cores, no framework"
    contents = "".join(
        f'<tr><th scope="row"><a href="#{_text(run.recipe.name)}">{_marked(run.recipe.family.title)}</a></th>'
        f'<td>{_text(run.recipe.data)}</td><td class="n">{run.model.num_parameters():,}</td>'
        f'<td class="n">{run.step:,}</td><td class="n">{_time(_seconds(run))}</td></tr>'
        for run, _ in shown
    )
    content = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>scratchgen: what equations make of data</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header>
<p class="name">scratchgen</p>
<h1>What equations make of data</h1>
<p class="lead">Every model on this page was trained from its equation on this machine, in {_time(total)} altogether:
{machine}.</p>
<table class="contents">
<thead><tr><th scope="col">model</th><th scope="col">learned from</th><th scope="col" class="n">parameters</th>
<th scope="col" class="n">steps</th><th scope="col" class="n">time</th></tr></thead>
<tbody>{contents}</tbody>
</table>
</header>
<main>
{"".join(sections)}
</main>
<footer><p>To train longer, on other data, or with other settings: <code>scratchgen train --help</code>.</p></footer>
</body>
</html>
"""
    write_whole(path, content.encode("utf-8", "replace"))  # a file's name need not be Unicode


# ---------------------------------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------------------------------


def _section(run: Run, scores: dict[str, float]) -> str:
    r, family, rows, told = run.recipe, run.recipe.family, run.rows, runs.page(run)
    facts = (
        f"{run.model.num_parameters():,} parameters · {run.step:,} steps of {r.batch_size} · {_time(_seconds(run))} · "
        f"learned from {_text(r.data)}"
    )
    curves = "".join(_curve(panel, rows) for panel in family.curves if rows)
    return f"""<section id="{_text(r.name)}">
<h2>{_marked(family.title)}</h2>
<p>{_marked(told.lead)}</p>
<div class="equations">{"".join(map(_math, told.equations))}</div>
<p class="facts">{facts}</p>
{_diagnosis(run)}
{"".join(map(_shown, told.figures))}
{_growth(run)}
<div class="curves">{curves}</div>
{_scores(family, scores)}
</section>
"""


def _diagnosis(run: Run) -> str:
    """What the curves say is wrong, as `train` said at the end."""
    rows = [row for row in run.rows if row["step"] <= run.step]
    said = run.recipe.family.diagnose(rows, run.model.config).values()
    return "".join(f'<p class="remark">{html.escape(sentence[:1].upper() + sentence[1:])}.</p>' for sentence in said)


def _marked(text: str) -> str:
    """HTML of a text in which letters between asterisks are set in italics."""
    return re.sub(r"\*(\w+)\*", r"<i>\1</i>", html.escape(text, quote=False))


def _scores(family: Family, scores: dict[str, float]) -> str:
    meanings = {score.key: score for score in family.meanings}
    columns, rows = side_by_side(scores)
    head = '<th scope="col">held-out score</th>' + "".join(f'<th scope="col" class="n">{column}</th>' for column in columns)
    body = ""
    for key, values in rows:
        score = meanings.get(key, Score(key, key.replace("_", " ")))
        arrow = {1: " ↑", -1: " ↓", 0: ""}[score.better]
        cells = "".join(f'<td class="n">{"" if value is None else _rounded(value)}</td>' for value in values)
        body += f'<tr><th scope="row">{_marked(score.name)}{arrow}</th>{cells}<td>{_marked(score.tells)}</td></tr>'
    return f'<table class="scores"><thead><tr>{head}<th></th></tr></thead><tbody>{body}</tbody></table>'


def _text(text: Any) -> str:
    return html.escape(Path(text).name if os.sep in str(text) else str(text))


def _rounded(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:#.3g}".rstrip(".").replace("-", "−")


def _seconds(run: Run) -> float:
    """How long the run has taken, as far as its metrics tell."""
    return run.rows[-1]["seconds"] if run.rows else 0.0


def _time(seconds: float) -> str:
    text = f"{seconds:.0f} s" if seconds < 90 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def _shown(figure: Figure | tuple[Figure, ...]) -> str:
    """A figure, or those that stand side by side."""
    if type(figure) is tuple:
        return f'<div class="pair">{"".join(map(_shown, figure))}</div>'
    return _FIGURES[type(figure)](figure)


def _pictures(figure: Pictures) -> str:
    sheet = pictures.grid(figure.x, figure.columns, scale=1)  # the browser enlarges it, so that the page stays small
    caption = _marked(figure.caption)
    return f"<figure>{_image(pictures.png(sheet), _plain(caption))}<figcaption>{caption}</figcaption></figure>"


def _texts(figure: Texts, *, narrow: bool = False) -> str:
    blocks = "".join(
        f"<div><h3>{_text(title)}</h3><pre>{html.escape(text.strip(chr(10)))}</pre></div>" for title, text in figure.texts
    )
    return f'<div class="texts{" narrow" * narrow}">{blocks}</div><p class="caption">{_marked(figure.caption)}</p>'


def _plot(png: bytes, caption: str) -> str:
    return f'<figure class="plot">{_image(png, _plain(_marked(caption)))}<figcaption>{_marked(caption)}</figcaption></figure>'


_FIGURES: dict[type, Callable[[Any], str]] = {
    Pictures: _pictures,
    Texts: _texts,
    Planes: lambda figure: _plot(pictures.planes(figure.planes), figure.caption),
    Paths: lambda figure: _plot(pictures.paths(figure), figure.caption),
}


def _image(png: bytes, alt: str) -> str:
    """Grey pictures are shown as ink on the paper of the page, in its light and in its dark form."""
    grey = png[25] == 0  # the colour type, in the header of a PNG file
    kind = ' class="ink"' if grey else ""
    return f'<img{kind} alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _plain(markup: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", markup))


def _growth(run: Run) -> str:
    """What the model made on its way: the film strip of the run, or, where there is none, some of the samples that it kept."""
    medium, film = MEDIA[run.recipe.family.makes], run.folder / FILM
    if medium.film and film.exists():
        caption = _FILMS[run.recipe.family.makes]
        return f'<figure class="film">{_image(film.read_bytes(), caption)}<figcaption>{caption}</figcaption></figure>'
    return _GROWTH[run.recipe.family.makes](kept_samples(run.folder, run.step, medium.suffix, most=4))


def _grown_pictures(kept: list[tuple[int, Path]]) -> str:
    figures = "".join(
        f"<figure>{_image(path.read_bytes(), f'samples at step {step}')}<figcaption>step {step:,}</figcaption></figure>"
        for step, path in kept
    )
    return f'<div class="growth">{figures}</div><p class="caption">The same codes, as training went on.</p>'


def _grown_points(kept: list[tuple[int, Path]]) -> str:
    return _grown_pictures(kept).replace("<figure>", '<figure class="plot">')


def _grown_texts(kept: list[tuple[int, Path]]) -> str:
    texts = [(f"step {step:,}", path.read_text(encoding="utf-8", errors="replace")[:150]) for step, path in kept]
    return _texts(Texts(texts, "On the way there."), narrow=True)


# what a family makes → what its film strip shows
_FILMS = {
    "pictures": "The same codes, a column each, as training went on; before each row, its step.",
    "points": "Samples of the same noise, as training went on.",
}
# what a family makes → how the samples that were kept on the way are shown
_GROWTH: dict[str, Callable[[list[tuple[int, Path]]], str]] = {
    "pictures": _grown_pictures,
    "points": _grown_points,
    "text": _grown_texts,
}


def _curve(panel: Panel, rows: list[dict[str, Any]], width: int = 420, height: int = 230) -> str:
    """A panel as a drawing that takes its colours from the page."""
    left, right, top, bottom = 46, 20, 30, 34
    lines, level = pictures.lines(panel, rows), panel.level
    if not lines:
        return ""
    if panel.log:  # what is drawn and marked are the logarithms
        lines = [(line, steps, np.log10(values)) for line, steps, values in lines]
        level = level and (np.log10(level[0]), level[1])
    values = np.concatenate([y for _, _, y in lines] + ([[level[0]]] if level else []))
    last = max(row["step"] for row in rows)
    # a loss falls from far above in its first steps: the highest 2 % of the values are cut off, to show the rest
    low, high = float(values.min()), float(np.quantile(values, 0.98))
    low, high = low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1)

    def position(step: float, value: float) -> tuple[float, float]:
        share = (min(value, high) - low) / (high - low)
        return left + (width - left - right) * step / last, height - bottom - (height - top - bottom) * share

    drawn = []
    for value in _decades(low, high) if panel.log else _ticks(low, high):
        y, shown = position(0, value)[1], 10**value if panel.log else value
        drawn.append(
            f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>'
            f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(shown)}</text>'
        )
    for step in _ticks(0, last):
        drawn.append(
            f'<text class="tick" x="{position(step, low)[0]:.1f}" y="{height - bottom + 18}" text-anchor="middle">'
            f"{step:,.0f}</text>"
        )
    if level:
        drawn.append(f'<path class="level" d="M{left} {position(0, level[0])[1]:.1f}H{width - right}"/>')
    legend = []
    for i, (line, steps, y) in enumerate(lines):
        path = "L".join("{:.1f} {:.1f}".format(*position(s, v)) for s, v in zip(steps, y, strict=True))
        drawn.append(f'<path class="line c{i}" d="M{path}"/>')
        if line.held_out:
            drawn += [
                '<circle class="c{}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>'.format(i, *position(s, v))
                for s, v in zip(steps, y, strict=True)
            ]
        legend.append(f'<span class="c{i}">{line.label}</span>')
    if level:
        legend.append(f'<span class="l">{level[1]}</span>')
    return (
        f"<figure><figcaption><b>{panel.title}</b> {' '.join(legend)}</figcaption>"
        f'<svg viewBox="0 {top - 12} {width} {height - top + 12}" role="img" aria-label="{html.escape(panel.title)}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def _tick(value: float) -> str:
    small = 0 < abs(value) < 1e-3
    return (f"{value:.0e}".replace("e-0", "e-") if small else f"{value:g}").replace("-", "−")


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers between low and high."""
    raw = (high - low) / 4
    size = 10 ** np.floor(np.log10(raw))
    size *= min((m for m in (1, 2, 5, 10) if m * size >= raw), default=10)
    return [round(float(k * size), 10) for k in range(int(np.ceil(low / size)), int(np.floor(high / size)) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Logarithms, from low to high, of the powers of ten; where these are few, of 1, 2 and 5 times these too."""
    whole = range(math.floor(low), math.ceil(high) + 1)
    ticks = [float(k) for k in whole if low <= k <= high]
    if len(ticks) < 3:
        ticks = [k + math.log10(m) for k in whole for m in (1, 2, 5) if low <= k + math.log10(m) <= high]
    return ticks[:: -(-len(ticks) // 6) or 1]


# ---------------------------------------------------------------------------------------------------------------------
# Equations
# ---------------------------------------------------------------------------------------------------------------------


def _math(source: str) -> str:
    """MathML of an equation: symbols parted by spaces; a_b and a_{bc} with subscripts, a^b, a__b with b under a."""
    symbols = (_term(symbol) + _THIN * symbol.startswith(("log", "min", "max")) for symbol in source.split(" "))
    return f'<math display="block">{"".join(symbols)}</math>'


_THIN = '<mspace width="0.17em"/>'


def _term(symbol: str) -> str:
    for mark, element in (("__", "munder"), ("_", "msub"), ("^", "msup")):
        base, found, script = symbol.partition(mark)
        if found and base:
            inner = "".join(map(_term, re.findall(r"\w+_\w+|\w+|.", script.strip("{}"))))
            return f"<{element}>{_term(base)}<mrow>{inner}</mrow></{element}>"
    if symbol.startswith("√"):
        return f"<msqrt>{_term(symbol[1:])}</msqrt>"
    if not symbol:
        return '<mspace width="1em"/>'
    if symbol.isdigit():
        return f"<mn>{symbol}</mn>"
    if symbol.isalpha():  # one letter is set in italics, a word upright
        return f"<mi>{symbol}</mi>"
    fence = ' stretchy="false"' if symbol in "()[]∣‖" else ""
    return f"<mo{fence}>{html.escape(symbol)}</mo>"


_STYLE = """
:root { --paper: #fbfaf6; --ink: #1d1c1a; --soft: #6d6a63; --line: #dedad0; --c0: #b5452c; --c1: #2b6a8f;
  --c2: #6f7d1f; --block: #f3f1ea; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161513; --ink: #e9e6df; --soft: #9b968b; --line: #35322d; --c0: #e58a6f; --c1: #7fb6d6;
    --c2: #b9c46a; --block: #1e1d1a; }
}
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--ink); font: 17px/1.6 "Iowan Old Style", Palatino, Georgia, serif; }
body { max-width: 62rem; margin: 0 auto; padding: 4rem 1.5rem 3rem; }
header, section > p, .equations, footer { max-width: 44rem; }
.name { font-variant: small-caps; letter-spacing: .08em; color: var(--soft); margin: 0; }
h1 { font-size: 2.5rem; line-height: 1.15; font-weight: 500; letter-spacing: -.01em; margin: .2rem 0 1rem; }
h2 { font-size: 1.7rem; font-weight: 500; margin: 0 0 .6rem; }
h3 { font: 600 .78rem/1.4 system-ui, sans-serif; color: var(--soft); margin: 0 0 .35rem; }
.lead { font-size: 1.12rem; }
section { border-top: 1px solid var(--line); margin-top: 4rem; padding-top: 2.4rem; }
a { color: inherit; text-decoration-color: var(--c0); text-underline-offset: .18em; }
.remark { border-left: 3px solid var(--c0); padding-left: .9rem; font-size: .95rem; }
.equations { margin: 1.4rem 0; overflow-x: auto; display: grid; justify-items: start; }
math { font-size: 1.18rem; margin: .5rem 0; }
.facts, .caption, figcaption { font: .82rem/1.5 system-ui, sans-serif; color: var(--soft); }
figure { margin: 1.8rem 0; }
figcaption { margin-top: .5rem; }
img { display: block; width: 100%; image-rendering: pixelated; }
.film img { width: auto; max-width: 100%; image-rendering: auto; }
.plot img { image-rendering: auto; border-radius: 4px; }
img.ink { filter: invert(1); mix-blend-mode: multiply; }
@media (prefers-color-scheme: dark) { img.ink { filter: none; mix-blend-mode: screen; } }
.pair, .growth, .curves, .texts { display: grid; gap: 1.6rem; }
.pair, .curves { grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.pair figure, .growth figure, .curves figure { margin: 0; }
.growth { grid-template-columns: repeat(4, 1fr); gap: 1rem; margin-top: 1.8rem; }
.texts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1.2rem; margin-top: 1.8rem; }
.texts.narrow { grid-template-columns: repeat(auto-fit, minmax(min(100%, 12rem), 1fr)); }
.caption { margin: .6rem 0 0; }
.curves { margin: 2.2rem 0 1.6rem; }
.curves figure { max-width: 32rem; }
pre { font: .8rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--block); border-radius: 4px;
  padding: .9rem 1rem; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: .88em ui-monospace, Menlo, Consolas, monospace; }
table { border-collapse: collapse; font: .85rem/1.5 system-ui, sans-serif; }
table { display: block; max-width: 100%; overflow-x: auto; }
th, td { text-align: left; padding: .3rem 1.4rem .3rem 0; border-bottom: 1px solid var(--line); font-weight: 400;
  vertical-align: baseline; }
thead th { color: var(--soft); font-size: .78rem; white-space: nowrap; }
.scores td:last-child { color: var(--soft); }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { display: block; width: 100%; margin-top: .4rem; }
.tick { font: 11px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); }
.level { stroke: var(--soft); stroke-dasharray: 4 4; }
.line { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
circle.c0 { fill: var(--c0); } circle.c1 { fill: var(--c1); } circle.c2 { fill: var(--c2); }
figcaption b { color: var(--ink); font-weight: 600; }
figcaption span::before { content: "●"; margin: 0 .3em 0 .8em; }
span.c0::before { color: var(--c0); } span.c1::before { color: var(--c1); } span.c2::before { color: var(--c2); }
figcaption span.l::before { content: "┄"; }
footer { border-top: 1px solid var(--line); margin-top: 4rem; padding-top: 1rem; color: var(--soft); font-size: .9rem; }
@media (max-width: 40rem) {
  html { font-size: 16px; } body { padding-top: 2rem; } h1 { font-size: 1.9rem; }
  .growth { grid-template-columns: repeat(2, 1fr); }
  th, td { padding-right: .8rem; } .scores td:last-child { min-width: 13rem; }
}
@media print { body { max-width: none; } section { break-inside: avoid-page; } }
"""
