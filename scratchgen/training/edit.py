"""Work in the latent space of a trained autoencoder: each edit is a picture, and two of them a page to move about in.

    reconstruct    pictures through their codes and back
    interpolate    the way from one picture to another
    arithmetic     a picture, less what one class has in common, plus what another has
    traverse       one latent after the other, from low to high; a page with a slider for each
    map            where pictures lie, and what lies between them; a page on which the pointer draws
    transfer       another class in the same style, and the same class in other styles

A picture is told by the path of a file, or by its number among the held-out ones.

Whether an edit does what it is asked is no matter of taste: `judge` makes it of many held-out pictures, and a classifier,
trained apart on the pictures to learn from, says what it takes the results for.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen import data, metrics
from scratchgen.data.files import pictures_like
from scratchgen.models import latent
from scratchgen.models.classifier import ClassifierConfig, trained
from scratchgen.models.pictures import labels
from scratchgen.training import pictures, tasks
from scratchgen.training.folder import TrainingError, write_whole
from scratchgen.training.kept import keeping
from scratchgen.training.runs import Run

EDITS = "edits"  # the folder, within that of the run, where edits are written
MANY = 8  # pictures where nobody says which
ENCODED = 10_000  # of the pictures to learn from, to find the means of classes by
FRAMES = 11  # values of a latent in a traversal
SPAN = 2.5  # deviations to either side
SIDE = 20  # pictures along each side of a map


@dataclass(frozen=True)
class Options:
    """What an edit may be told; what is None is left to the edit."""

    minus: str | None = None
    plus: str | None = None
    amount: float = 1.0
    way: str = "linear"
    steps: int = 12
    label: str | None = None  # the class of pictures from files, for a model that is told classes
    to: str | None = None
    seed: int = 0


class Editor:
    """A run whose pictures can be edited, and its data, read when they are first needed."""

    def __init__(self, run: Run, options: Options):
        self.run, self.options = run, options
        self.codec = run.model if run.base is None else run.base
        self.shape = tuple(self.codec.config.shape)
        self.names: list[str] = list(run.metadata["classes"])
        self.told = bool(getattr(self.codec.config, "classes", 0))
        self._task: data.Task | None = None

    @property
    def task(self) -> data.Task:
        if self._task is None:
            run = self.run
            self._task = tasks.load_again(run.recipe, run.folder, run.checksums, run.table, run.base)
        return self._task

    def _images(self, part: Any) -> data.Images:
        return getattr(part, "images", part)

    @property
    def held_out(self) -> data.Images:
        return self._images(self.task.test)

    # Pictures and codes

    def pictures(self, named: Sequence[str], *, of: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Pictures named by numbers or paths, or MANY held-out ones, of a class if one is asked for; and their classes.

        Raises TrainingError for a number that no picture has, and what is said of files that cannot be read.
        """
        if not named:
            held, rng = self.held_out, np.random.default_rng(self.options.seed)
            rows = np.arange(len(held)) if of is None or held.y is None else np.flatnonzero(held.y == of)
            rows = rng.permutation(rows)[:MANY]
            return held.x[rows], None if held.y is None else held.y[rows]
        x, y = [], []
        for name in named:
            if name.isdecimal() and not Path(name).exists():
                held, k = self.held_out, int(name)
                if k >= len(held):
                    raise TrainingError(
                        f"picture {name}: expected a number below {len(held)}, the number of held-out pictures."
                    )
                x.append(held.x[k])
                y.append(-1 if held.y is None else int(held.y[k]))
            else:
                x += list(pictures_like(name, self.shape))
                y += [self._label()] * (len(x) - len(y))
        return np.stack(x), np.array(y)

    def _label(self) -> int:
        """The class of a picture from a file. Raises OptionError, or TrainingError where the model needs one."""
        if self.options.label is not None:
            return int(labels(self.names, 1, self.options.label)[0])
        if self.told:
            raise TrainingError(f"--label: the model is told classes, so tell that of the picture: {', '.join(self.names)}.")
        return -1

    def class_of(self, name: str | None, option: str) -> int:
        """The number of a class that an option names. Raises TrainingError where it is not told, or there are no classes."""
        if not self.names:
            raise TrainingError(f"{option}: the pictures of this run have no classes.")
        if name is None:
            raise TrainingError(f"{option}: expected one of {', '.join(self.names)}, got nothing.")
        matching = [k for k, known in enumerate(self.names) if known.lower() == name.lower()]
        return matching[0] if matching else int(labels(self.names, 1, name)[0])

    @property
    def ends(self) -> tuple[int, int]:
        """The classes that arithmetic takes away and adds."""
        minus, plus = (self.class_of(getattr(self.options, option), f"--{option}") for option in ("minus", "plus"))
        return minus, plus

    def encode(self, x: np.ndarray, y: np.ndarray | None) -> np.ndarray:
        parts = [slice(i, i + 512) for i in range(0, len(x), 512)]
        return np.concatenate([self.codec.encode(x[p], y[p]) if self.told else self.codec.encode(x[p]) for p in parts])

    def decode(self, z: np.ndarray, y: Any = None) -> np.ndarray:
        """Pictures of codes; where the model is told classes, y is that of each, or one for all.     (…, d) → (N, C, H, W)"""
        z = z.reshape(-1, z.shape[-1])
        if not self.told:
            return np.concatenate([self.codec.decode(z[i : i + 512]) for i in range(0, len(z), 512)])
        y = np.broadcast_to(0 if y is None else y, len(z))
        return np.concatenate([self.codec.decode(z[i : i + 512], y[i : i + 512]) for i in range(0, len(z), 512)])

    def encoded(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Codes of some of the pictures to learn from, and their classes."""
        train = self._images(self.task.train)
        rows = np.random.default_rng(0).permutation(len(train))[:ENCODED]
        y = None if train.y is None else train.y[rows]
        return self.encode(train.x[rows], y), y


# ---------------------------------------------------------------------------------------------------------------------
# Edits: (editor, names of pictures) → name of a file → its content
# ---------------------------------------------------------------------------------------------------------------------


def reconstruct(editor: Editor, named: Sequence[str]) -> dict[str, bytes]:
    """Above the pictures, below what their codes restore."""
    x, y = editor.pictures(named)
    return {"reconstruct.png": _sheet(np.concatenate([x, editor.codec.reconstruct(x, y)]), len(x))}


def interpolate(editor: Editor, named: Sequence[str]) -> dict[str, bytes]:
    """A row for each pair of pictures: the first, the pictures on the way between their codes, the second."""
    x, y = editor.pictures(named)
    if len(x) < 2:
        raise TrainingError("interpolate: expected two pictures, got one.")
    x, y = x[: len(x) // 2 * 2], None if y is None else y[: len(x) // 2 * 2]
    z, way = editor.encode(x, y), latent.WAYS.get(editor.options.way)
    if way is None:
        raise TrainingError(f"--way: expected {' or '.join(latent.WAYS)}, got {editor.options.way!r}.")
    path = way(z[::2], z[1::2], editor.options.steps)  # (pairs, steps, d)
    told = np.repeat(y[::2], path.shape[1]) if editor.told else None
    between = editor.decode(path, told).reshape(*path.shape[:2], *editor.shape)
    rows = np.concatenate([x[::2, None], between, x[1::2, None]], axis=1)  # (pairs, steps + 2, C, H, W)
    return {"interpolate.png": _sheet(rows.reshape(-1, *editor.shape), rows.shape[1])}


def arithmetic(editor: Editor, named: Sequence[str]) -> dict[str, bytes]:
    """A row for each picture: itself, its code decoded, and z + a (mean of `plus` − mean of `minus`) for growing a."""
    minus, plus = editor.ends
    x, y = editor.pictures(named, of=minus)
    amounts = np.linspace(0, editor.options.amount, 6)
    made = _moved(editor, x, y, amounts)  # (N, 6, C, H, W)
    rows = np.concatenate([x[:, None], made], axis=1)
    return {"arithmetic.png": _sheet(rows.reshape(-1, *editor.shape), rows.shape[1])}


def _moved(editor: Editor, x: np.ndarray, y: np.ndarray | None, amounts: np.ndarray) -> np.ndarray:
    """Pictures of z + a (mean of `plus` − mean of `minus`), for each of the amounts a.     → (N, amounts, C, H, W)"""
    minus, plus = editor.ends
    z, means = editor.encode(x, y), latent.class_means(*editor.encoded(), len(editor.names))
    moved = np.stack([latent.analogy(z, means[minus], means[plus], a) for a in amounts], axis=1)  # (N, amounts, d)
    told = np.repeat(y, len(amounts)) if editor.told else None
    return editor.decode(moved.astype(z.dtype), told).reshape(len(x), len(amounts), *editor.shape)


def traverse(editor: Editor, named: Sequence[str]) -> dict[str, bytes]:
    """A row for each latent, those that the data use the most first: one picture with this number from low to high."""
    x, y = editor.pictures(named[:1])
    z0 = editor.encode(x[:1], None if y is None else y[:1])[0]
    z, _ = editor.encoded()
    order = np.argsort(-z.var(0))
    values = z.mean(0)[:, None] + z.std(0)[:, None] * np.linspace(-SPAN, SPAN, FRAMES)  # (d, FRAMES)
    frames = np.concatenate([latent.traverse(z0, k, values[k].astype(z0.dtype)) for k in order])
    told = None if y is None else y[0]
    made = editor.decode(frames, told)  # (d · FRAMES, C, H, W)
    first = editor.decode(z0[None], told)[0]
    sheet = _sheet(made, FRAMES)
    page = _traverse_page(made, first, [int(k) for k in order], [float(z.std(0)[k]) for k in order])
    return {"traverse.png": sheet, "traverse.html": page}


def map_(editor: Editor, named: Sequence[str]) -> dict[str, bytes]:
    """Beside each other the codes of held-out pictures, by class, and pictures of codes all over the same plane."""
    z, _ = editor.encoded()
    held = editor.held_out
    rows = np.random.default_rng(0).permutation(len(held))[:2000]
    y = None if held.y is None else held.y[rows]
    plane = latent.plane(z)
    uv = plane.coordinates(editor.encode(held.x[rows], y))  # (n, 2)
    at = latent.grid(plane.coordinates(z), SIDE)  # (SIDE, SIDE, 2)
    told = None if not editor.told else editor.class_of(editor.options.label or editor.names[0], "--label")
    made = editor.decode(plane.points(at).astype(z.dtype), told)  # (SIDE², C, H, W)
    return {
        "map.png": _map_picture(uv, y, editor.names, made),
        "map.html": _map_page(uv, y, editor.names, at, made),
    }


def transfer(editor: Editor, named: Sequence[str]) -> dict[str, bytes]:
    """A row for each picture: itself, then its style in every class, or in the class `to`."""
    if not editor.told:
        raise TrainingError(f"transfer: the model of {editor.run.recipe.name!r} is told no classes; train a cvae.")
    x, y = editor.pictures(named)
    to = range(len(editor.names)) if editor.options.to is None else [editor.class_of(editor.options.to, "--to")]
    z = editor.encode(x, y)
    made = np.stack([editor.decode(z, k) for k in to], axis=1)  # (N, classes, C, H, W)
    rows = np.concatenate([x[:, None], made], axis=1)
    return {"transfer.png": _sheet(rows.reshape(-1, *editor.shape), rows.shape[1])}


HOW: dict[str, Callable[[Editor, Sequence[str]], dict[str, bytes]]] = {
    "reconstruct": reconstruct,
    "interpolate": interpolate,
    "arithmetic": arithmetic,
    "traverse": traverse,
    "map": map_,
    "transfer": transfer,
}


def edit(run: Run, how: str, named: Sequence[str], options: Options, out: Path | None = None) -> list[Path]:
    """Make an edit and write its files: RUN/edits/HOW.png, or `out`; a page lies beside it. Returns their paths.

    Raises TrainingError: a family without codes, no such edit, class or picture; DataError for files and data.
    """
    paths = []
    for name, content in HOW[how](_editor(run, how, options), named).items():
        path = (out.with_suffix(Path(name).suffix)) if out else run.folder / EDITS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        paths.append(path)
    return paths


def _editor(run: Run, how: str, options: Options) -> Editor:
    offered = run.recipe.family.edits
    if how not in offered:
        what = f"expected {', '.join(offered)}" if offered else "it has no codes to edit"
        raise TrainingError(f"edit: the recipe {run.recipe.name!r} cannot be asked to {how}; {what}.")
    return Editor(run, options)


# ---------------------------------------------------------------------------------------------------------------------
# Does an edit do what it is asked? Trials: (editor, numbers of held-out pictures) → what was asked, in words; pictures; the
# classes that each may be taken for, (N, any number)
# ---------------------------------------------------------------------------------------------------------------------

Trials = tuple[str, np.ndarray, np.ndarray]


def _try_arithmetic(editor: Editor, rows: np.ndarray) -> Trials:
    minus, plus = editor.ends
    x, y = editor.held_out.x[rows], editor.held_out.y
    made = _moved(editor, x, y[rows], np.array([editor.options.amount]))[:, 0]
    return f"{editor.names[minus]} − {editor.names[minus]} + {editor.names[plus]}", made, np.full((len(x), 1), plus)


def _try_transfer(editor: Editor, rows: np.ndarray) -> Trials:
    x, y = editor.held_out.x[rows], editor.held_out.y[rows]
    turn = np.random.default_rng(editor.options.seed).integers(1, len(editor.names), len(rows))
    to = (y + turn) % len(editor.names)  # another class than its own
    if editor.options.to is not None:
        to = np.full(len(rows), editor.class_of(editor.options.to, "--to"))
    return "the style of one class as another class", editor.decode(editor.encode(x, y), to), to[:, None]


def _try_interpolate(editor: Editor, rows: np.ndarray) -> Trials:
    held, rng = editor.held_out, np.random.default_rng(editor.options.seed)
    others = np.array([rng.choice(np.flatnonzero(held.y == held.y[row])) for row in rows])
    z = [editor.encode(held.x[r], held.y[r]) for r in (rows, others)]
    middle = latent.WAYS[editor.options.way](*z, 3)[:, 1]
    return "halfway between two of a class", editor.decode(middle, held.y[rows]), held.y[rows][:, None]


def _try_reconstruct(editor: Editor, rows: np.ndarray) -> Trials:
    x, y = editor.held_out.x[rows], editor.held_out.y[rows]
    return "itself", editor.decode(editor.encode(x, y), y), y[:, None]


TRIALS: dict[str, Callable[[Editor, np.ndarray], Trials]] = {
    "arithmetic": _try_arithmetic,
    "transfer": _try_transfer,
    "interpolate": _try_interpolate,
    "reconstruct": _try_reconstruct,
}


def judge(run: Run, how: str, options: Options, trials: int, say: Callable[[str], Any] = lambda text: None) -> str:
    """A sentence: of so many held-out pictures edited so, the share that a classifier takes for what was asked.

    Beside it stands the share that it reads right of real held-out pictures, and how sure the first one is: Wilson's interval.
    Raises TrainingError: an edit that asks for no class, pictures without classes, or too few of one; and what `edit` raises.
    """
    editor = _editor(run, how, options)
    if how not in TRIALS:
        raise TrainingError(f"--judge: {how} asks for no class; expected one of {', '.join(TRIALS)}.")
    held, train = editor.held_out, editor._images(editor.task.train)
    if not editor.names or held.y is None:
        raise TrainingError("--judge: the pictures of this run have no classes.")
    of = np.flatnonzero(held.y == editor.ends[0]) if how == "arithmetic" else np.arange(len(held))
    rows = np.random.default_rng(options.seed).permutation(of)[:trials]
    reader = trained(ClassifierConfig(train.shape, (len(editor.names),)), train.x, train.y, keeping(say))
    asked, made, right = TRIALS[how](editor, rows)
    found = int((reader.read(made)[1] == right).any(1).sum())
    low, high = metrics.wilson_interval(found, len(rows))
    real = float((reader.read(held.x)[1][:, 0] == held.y).mean())
    return (
        f"{asked}: a classifier takes {found} of {len(rows)} for what was asked, {100 * found / len(rows):.1f} % (95 % "
        f"interval {100 * low:.1f} to {100 * high:.1f}); of real held-out pictures it reads {100 * real:.1f} % right."
    )


def _sheet(x: np.ndarray, columns: int) -> bytes:
    return pictures.png(pictures.grid(x, columns))


# ---------------------------------------------------------------------------------------------------------------------
# The map
# ---------------------------------------------------------------------------------------------------------------------

COLOURS = ("#b5452c", "#2b6a8f", "#3d8a5f", "#c78a2c", "#7a4e9c", "#1d9aa3", "#8c6b4f", "#d0628f", "#5c6470", "#9aa832")


def _map_picture(uv: np.ndarray, y: np.ndarray | None, names: Sequence[str], made: np.ndarray) -> bytes:
    """The scatter on the left, the pictures on the right."""
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({key: value for key, value in rcParamsDefault.items() if key != "backend"}):
        figure = Figure(figsize=(12, 6), dpi=100)
        canvas = FigureCanvasAgg(figure)
        left, right = figure.subplots(
            1, 2, gridspec_kw={"left": 0.04, "right": 0.99, "bottom": 0.06, "top": 0.97, "wspace": 0.04}
        )
        for k in range(1 if y is None else len(names)):
            of = uv if y is None else uv[y == k]
            left.scatter(*of.T, s=5, linewidths=0, color=COLOURS[k % len(COLOURS)], label=None if y is None else names[k])
        if y is not None:
            left.legend(frameon=False, fontsize=8, markerscale=2.5)
        left.spines[["top", "right"]].set_visible(False)
        sheet = pictures.grid(made, SIDE, scale=1, gap=0)
        right.imshow(sheet, cmap="gray" if sheet.ndim == 2 else None, interpolation="nearest")
        right.axis("off")
        canvas.draw()
        return pictures.png(np.asarray(canvas.buffer_rgba())[:, :, :3])


def _map_page(uv: np.ndarray, y: np.ndarray | None, names: Sequence[str], at: np.ndarray, made: np.ndarray) -> bytes:
    """Points to move over; beside them the picture of the nearest point of the grid. Nothing is fetched."""
    content = {
        "points": np.round(uv, 3).tolist(),
        "classes": [] if y is None else y.tolist(),
        "names": list(names) if y is not None else [],
        "colours": COLOURS,
        "u": np.round(at[0, :, 0].astype(float), 4).tolist(),
        "v": np.round(at[:, 0, 1].astype(float), 4).tolist(),
        "side": SIDE,
        "height": made.shape[2],
        "width": made.shape[3],
    }
    body = """<p>Each dot is the code of a held-out picture. Move over them: beside stands what the place is decoded to.</p>
<div class="pair"><canvas id="map" width="640" height="640" aria-label="codes of pictures"></canvas>
<div><div id="shown" role="img" aria-label="the decoded picture"></div><p id="where"></p><ul id="legend"></ul></div></div>"""
    script = """
const c = document.getElementById('map'), g = c.getContext('2d'), shown = document.getElementById('shown');
const us = D.points.map(p => p[0]).concat(D.u), vs = D.points.map(p => p[1]).concat(D.v);
const lo = [Math.min(...us), Math.min(...vs)], hi = [Math.max(...us), Math.max(...vs)];
const px = (u, v) => [20 + (u - lo[0]) / (hi[0] - lo[0]) * 600, 620 - (v - lo[1]) / (hi[1] - lo[1]) * 600];
const back = (x, y) => [lo[0] + (x - 20) / 600 * (hi[0] - lo[0]), lo[1] + (620 - y) / 600 * (hi[1] - lo[1])];
const off = (list, i, value) => Math.abs(list[i] - value);
const nearest = (list, value) => list.reduce((best, _, i) => off(list, i, value) < off(list, best, value) ? i : best, 0);
function draw(i, j) {
  g.clearRect(0, 0, 640, 640);
  D.points.forEach((p, n) => { g.fillStyle = D.colours[(D.classes[n] || 0) % D.colours.length];
    const [x, y] = px(p[0], p[1]); g.beginPath(); g.arc(x, y, 2.2, 0, 7); g.fill(); });
  const [x, y] = px(D.u[j], D.v[i]); g.strokeStyle = getComputedStyle(document.body).color; g.lineWidth = 2;
  g.beginPath(); g.arc(x, y, 8, 0, 7); g.stroke(); sprite(shown, i * D.side + j, D.side);
  document.getElementById('where').textContent = D.u[j].toFixed(2) + ', ' + D.v[i].toFixed(2);
}
function move(e) { const r = c.getBoundingClientRect(), s = 640 / r.width;
  const [u, v] = back((e.clientX - r.left) * s, (e.clientY - r.top) * s); draw(nearest(D.v, v), nearest(D.u, u)); }
c.addEventListener('pointermove', move); c.addEventListener('pointerdown', move);
D.names.forEach((name, k) => { const li = document.createElement('li'); li.textContent = name;
  li.style.setProperty('--dot', D.colours[k % D.colours.length]); document.getElementById('legend').append(li); });
draw(D.side >> 1, D.side >> 1);
"""
    return _page("A map of codes", body, script, content, pictures.grid(made, SIDE, scale=1, gap=0))


# ---------------------------------------------------------------------------------------------------------------------
# Sliders
# ---------------------------------------------------------------------------------------------------------------------


def _traverse_page(made: np.ndarray, first: np.ndarray, order: list[int], deviations: list[float]) -> bytes:
    """A slider for each latent; the picture shows the one that was moved last, the others at their place."""
    content = {
        "order": order,
        "deviations": [round(d, 4) for d in deviations],
        "frames": FRAMES,
        "side": FRAMES,
        "height": made.shape[2],
        "width": made.shape[3],
        "span": SPAN,
    }
    body = """<p>Each slider moves one number of the code, from low to high, the others as they are in the first picture.
Those by which pictures differ the most come first.</p>
<div class="pair"><div id="shown" role="img" aria-label="the decoded picture"></div><div id="sliders"></div></div>"""
    script = """
const shown = document.getElementById('shown'), last = D.order.length * D.frames;
D.order.forEach((k, n) => { const row = document.createElement('label');
  row.innerHTML = '<span>z<sub>' + (k + 1) + '</sub></span><input type="range" min="0" max="' + (D.frames - 1) + '" value="' +
    (D.frames >> 1) + '"><output>σ ' + D.deviations[n].toFixed(2) + '</output>';
  row.querySelector('input').addEventListener('input', e => sprite(shown, n * D.frames + Number(e.target.value), D.side));
  document.getElementById('sliders').append(row); });
sprite(shown, last, D.side);
"""
    sheet = pictures.grid(np.concatenate([made, first[None]]), FRAMES, scale=1, gap=0)
    return _page("A code, number by number", body, script, content, sheet)


_STYLE = """
:root { --paper: #fbfaf6; --ink: #1d1c1a; --soft: #6d6a63; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #161513; --ink: #e9e6df; --soft: #9b968b; } }
body { background: var(--paper); color: var(--ink); font: 17px/1.6 Georgia, serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-weight: 500; } p { max-width: 42rem; } #where, output { color: var(--soft); font: .85rem system-ui, sans-serif; }
.pair { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
canvas { width: min(100%, 40rem); touch-action: none; }
#shown { width: 14rem; image-rendering: pixelated; background-repeat: no-repeat; }
ul { list-style: none; padding: 0; font: .85rem system-ui, sans-serif; } li::before { content: "● "; color: var(--dot); }
label { display: grid; grid-template-columns: 3rem 16rem 4rem; align-items: center; gap: .6rem; }
"""

_SPRITE = """
function sprite(element, n, columns) {
  const scale = 224 / D.width; element.style.height = D.height * scale + 'px'; element.style.width = '224px';
  element.style.backgroundImage = 'url(' + S + ')';
  element.style.backgroundSize = columns * 224 + 'px auto';
  element.style.backgroundPosition = -(n % columns) * 224 + 'px ' + -Math.floor(n / columns) * D.height * scale + 'px';
}
"""


def _page(title: str, body: str, script: str, content: dict[str, Any], sheet: np.ndarray) -> bytes:
    """A page that holds all it shows: `content` as D, and the sheet of pictures as S, of which `sprite` shows one."""
    source = "data:image/png;base64," + base64.b64encode(pictures.png(sheet)).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head>
<body><h1>{html.escape(title)}</h1>
{body}
<script>const D = {json.dumps(content)}, S = "{source}";{_SPRITE}{script}</script>
</body></html>
""".encode()
