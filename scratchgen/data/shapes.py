r"""Pictures of shapes, made by code: 32 × 32, RGB, with what is in them, captions, and outlines.

    a scene      objects on a ground, each with a size, a colour, a shape and a position, and what no caption speaks of:
                 the exact place, radius, tilt and tint, and the light on the ground
    a picture    `draw(scenes)`        (N, 3, 32, 32)
    its outline  `outline(scenes)`     (N, 1, 32, 32), white lines on black
    a caption    `say(stated, rng)`    "a small red circle in the upper left", "at the top there is a big yellow box", …
    its meaning  `parse(caption)`      what the caption states, and −1 for what it leaves open: parse(say(s)) = s

An object is drawn from its signed distance d(p): negative inside, positive outside, in pixels near the edge. A pixel whose
middle is at distance d is covered by 1/2 − d, between 0 and 1, so that edges are smooth and move by less than a pixel.

Six of the 36 combinations of a colour and a shape (`UNSEEN`), each colour and each shape once, are neither drawn nor named in
training; in the test all occur alike. A model that draws a red cross has put together what it never saw together. A third
split, in which all occur too, is for classifiers that judge such a model.

A scene holds objects (axis K), of which later ones lie over earlier ones; the data set has one in each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scratchgen.data.captions import Captioned
from scratchgen.data.checks import DataError, require_natural

SIDE = 32  # of a picture, in pixels
COUNTS = {"train": 20_000, "test": 2_000, "reader": 20_000}  # pictures in each split

# Attribute → value → the words for it, of which the first is the value's name.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")},
    "colour": {c: (c,) for c in ("red", "orange", "yellow", "green", "blue")} | {"purple": ("purple", "violet")},
    "shape": {
        "circle": ("circle", "disc"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "diamond": ("diamond", "rhombus"),
        "cross": ("cross", "plus"),
        "ring": ("ring", "hoop"),
    },
    "position": {  # row by row, so that position = 3 · row + column
        "upper left": ("in the upper left", "at the top left"),
        "top": ("at the top", "in the upper middle"),
        "upper right": ("in the upper right", "at the top right"),
        "left": ("on the left", "in the middle left"),
        "centre": ("in the centre", "in the middle"),
        "right": ("on the right", "in the middle right"),
        "lower left": ("in the lower left", "at the bottom left"),
        "bottom": ("at the bottom", "in the lower middle"),
        "lower right": ("in the lower right", "at the bottom right"),
    },
}
ATTRIBUTES = {name: tuple(values) for name, values in WORDS.items()}  # attribute → the names of its values
SIZE, COLOUR, SHAPE, POSITION = range(4)  # the columns of attributes

UNSEEN = frozenset(
    (ATTRIBUTES["colour"].index(colour), ATTRIBUTES["shape"].index(shape))
    for colour, shape in (
        ("red", "cross"),
        ("orange", "ring"),
        ("yellow", "square"),
        ("green", "triangle"),
        ("blue", "circle"),
        ("purple", "diamond"),
    )
)
_SEEN = np.array([(c, s) for c in range(6) for s in range(6) if (c, s) not in UNSEEN])


def is_unseen(attributes: np.ndarray) -> np.ndarray:
    """Which of these are a colour and a shape that never occur together in training?     (…, 4) → bool (…)"""
    pairs = np.array(sorted(UNSEEN))  # (6, 2)
    return (attributes[..., None, [COLOUR, SHAPE]] == pairs).all(-1).any(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Captions
# ---------------------------------------------------------------------------------------------------------------------

_PLACE = {"upper": 0, "top": 0, "lower": 2, "bottom": 2}, {"left": 0, "right": 2}
_MIDDLE = ("middle", "centre")
_NOTHING = {"a", "an", "the", "in", "at", "on", "there", "is", "picture", "of", "shape", "and", "that"}
_MEANS = {
    word: (column, value)
    for column, name in enumerate(ATTRIBUTES)
    for value, words in enumerate(WORDS[name].values())
    for word in words
    if column != POSITION
}


def say(stated: np.ndarray, rng: np.random.Generator) -> str:
    """A caption that states these values, and leaves open what is −1, in words drawn at random.     int (4) → text

    caption  →  [start] thing [place]  |  place "there is" thing
    start    →  "there is" | "a picture of"
    thing    →  "a" [size] [colour] shape  |  "a" [colour] shape "that is" size
    shape    →  the word, or "shape" where it is left open
    """
    size, colour, shape, place = (
        _one(list(WORDS[name].values())[value], rng) if value >= 0 else ""
        for name, value in zip(WORDS, stated.tolist(), strict=True)
    )
    shape, form = shape or "shape", rng.random(2)
    if size and form[0] < 0.15:
        thing = f"{colour} {shape} that is {size}".strip()
    else:
        thing = " ".join(word for word in (size, colour, shape) if word)
    thing = f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
    if place and form[1] < 0.25:
        return f"{place} there is {thing}"
    start = "" if form[1] < 0.7 else _one(("there is ", "a picture of "), rng)
    return f"{start}{thing} {place}".rstrip()


def parse(caption: str) -> np.ndarray:
    """What a caption states, and −1 for what it leaves open.     text → int64 (4)

    Raises DataError for a word that is not of the grammar, and for two values of one attribute.
    """
    stated, place, middle = [-1] * 4, [-1, -1], False
    for word in caption.lower().split():
        if word in _MEANS:
            column, value = _MEANS[word]
            if stated[column] not in (-1, value):
                raise DataError(f"caption: expected one {list(ATTRIBUTES)[column]}, got {caption!r}.")
            stated[column] = value
        elif word in _PLACE[0]:
            place[0] = _PLACE[0][word]
        elif word in _PLACE[1]:
            place[1] = _PLACE[1][word]
        elif word in _MIDDLE:
            middle = True
        elif word not in _NOTHING:
            raise DataError(f"caption: {word!r} is no word of the captions of shapes, in {caption!r}.")
    if middle or max(place) >= 0:
        row, column = (1 if at < 0 else at for at in place)
        stated[POSITION] = 3 * row + column
    return np.array(stated)


def _one(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[rng.integers(len(words))]


# ---------------------------------------------------------------------------------------------------------------------
# Scenes
# ---------------------------------------------------------------------------------------------------------------------


class Scenes(NamedTuple):
    """N scenes of K objects each; lengths in pixels, angles in radians, y downwards."""

    attributes: np.ndarray  # int64 (N, K, 4): size, colour, shape, position
    centre: np.ndarray  # (N, K, 2): x, y
    radius: np.ndarray  # (N, K)
    tilt: np.ndarray  # (N, K)
    rgb: np.ndarray  # (N, K, 3)
    ground: np.ndarray  # (N, 3): the colour in the middle of the picture
    light: np.ndarray  # (N, 2): how much brighter the ground is at the right edge, and at the bottom, than in the middle

    def __getitem__(self, rows):  # of scenes, not of the tuple's fields
        return Scenes(*(array[rows] for array in self))


_RADII = np.array([[3.3, 4.1], [5.8, 6.8]])  # of small and of large objects, from and to
_APART = 6.0  # between the middles of two neighbouring positions
_RGB = np.array(
    [[0.87, 0.12, 0.12], [0.98, 0.55, 0.10], [0.97, 0.90, 0.20], [0.13, 0.64, 0.24], [0.13, 0.32, 0.88], [0.58, 0.20, 0.72]]
)


def scenes(attributes: np.ndarray, rng: np.random.Generator) -> Scenes:
    """Scenes with these attributes; all else is drawn at random.     int64 (N, K, 4) → N scenes"""
    n, k = attributes.shape[:2]
    size, colour, _, position = np.moveaxis(attributes, 2, 0)  # (N, K) each
    at = np.stack([position % 3 - 1, position // 3 - 1], 2)  # (N, K, 2)
    low, high = _RADII[size, 0], _RADII[size, 1]
    dark = rng.random((n, 1)) < 0.5
    grey = np.where(dark, rng.uniform(0.05, 0.25, (n, 1)), rng.uniform(0.75, 0.92, (n, 1)))
    return Scenes(
        attributes,
        centre=SIDE / 2 + _APART * at + rng.uniform(-1, 1, (n, k, 2)),
        radius=low + (high - low) * rng.random((n, k)),
        tilt=rng.uniform(-0.12, 0.12, (n, k)),
        rgb=np.clip(_RGB[colour] + rng.uniform(-0.06, 0.06, (n, k, 3)), 0, 1),
        ground=grey + rng.uniform(-0.03, 0.03, (n, 3)),
        light=rng.uniform(-0.05, 0.05, (n, 2)),
    )


# The signed distance, or a bound of it that is exact near the edges, at points (x, y) in units of the object's radius. The
# sizes are such that the areas are alike, as far as all fit into a picture.
def _bar(x: np.ndarray, y: np.ndarray, a: float, b: float) -> np.ndarray:
    return np.maximum(np.abs(x) - a, np.abs(y) - b)


_TRIANGLE = [(np.cos(a), np.sin(a)) for a in np.pi * np.array([1 / 2, 7 / 6, 11 / 6])]  # the normals of its sides
_DISTANCE: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: _bar(x, y, 0.89, 0.89),
    "triangle": lambda x, y: np.maximum.reduce([a * x + b * (y - 0.15) for a, b in _TRIANGLE]) - 0.62,
    "diamond": lambda x, y: (np.abs(x) + np.abs(y) - 1.2) / np.sqrt(2, dtype=np.float32),
    "cross": lambda x, y: np.minimum(_bar(x, y, 1.1, 0.38), _bar(x, y, 0.38, 1.1)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.8) - 0.25,
}
_MIDDLES = (np.arange(SIDE) + 0.5).astype(np.float32)  # of pixels, along either axis
_AT_ONCE = 1000  # scenes, whose distances fit in a few tens of megabytes


def distances(s: Scenes, k: int) -> np.ndarray:
    """Signed distances of the middles of all pixels from the edge of the k-th object.     → float32 (N, 32, 32)"""
    x0, y0, r, tilt = (
        a.astype(np.float32)[:, None, None] for a in (s.centre[:, k, 0], s.centre[:, k, 1], s.radius[:, k], s.tilt[:, k])
    )
    dx, dy = (_MIDDLES[None, None, :] - x0) / r, (_MIDDLES[None, :, None] - y0) / r
    x, y = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx  # (N, 32, 32)
    d = np.empty(x.shape, np.float32)
    for value, distance in enumerate(_DISTANCE.values()):
        rows = s.attributes[:, k, SHAPE] == value
        d[rows] = distance(x[rows], y[rows])
    return d * r


def draw(s: Scenes) -> np.ndarray:
    """The pictures of scenes.     N scenes → float32 (N, 3, 32, 32) in [0, 1]"""
    return np.concatenate([_draw(s[i : i + _AT_ONCE]) for i in range(0, len(s.radius), _AT_ONCE)])


def _draw(s: Scenes) -> np.ndarray:
    slope = (2 * _MIDDLES / SIDE - 1).astype(np.float32)  # −1 … 1 from edge to edge
    right, down = s.light.astype(np.float32).T[:, :, None, None]  # (N, 1, 1) each
    light = right * slope[None, None, :] + down * slope[None, :, None]  # (N, 32, 32)
    picture = s.ground.astype(np.float32)[:, :, None, None] + light[:, None]  # (N, 3, 32, 32)
    for k in range(s.radius.shape[1]):
        cover = np.clip(0.5 - distances(s, k), 0, 1)[:, None]
        picture += cover * (s.rgb[:, k].astype(np.float32)[:, :, None, None] - picture)
    return np.clip(picture, 0, 1)


def outline(s: Scenes) -> np.ndarray:
    """The edges of objects, as white lines about a pixel wide on black.     N scenes → float32 (N, 1, 32, 32) in [0, 1]"""
    return np.concatenate([_outline(s[i : i + _AT_ONCE]) for i in range(0, len(s.radius), _AT_ONCE)])


def _outline(s: Scenes) -> np.ndarray:
    ink = np.zeros((len(s.radius), SIDE, SIDE), np.float32)
    for k in range(s.radius.shape[1]):
        d = distances(s, k)
        hidden = np.clip(0.5 - d, 0, 1)  # what lies under this object
        ink = np.maximum(ink * (1 - hidden), np.clip(1.1 - np.abs(d), 0, 1))
    return ink[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# The data set
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Shapes(Captioned):
    """Captioned pictures of one shape each, their scenes beside them.

    attributes, stated: int64 (N, 4), columns SIZE, COLOUR, SHAPE, POSITION;  unseen: bool (N), those of `UNSEEN`.
    """

    scenes: Scenes | None = None

    def outlines(self) -> np.ndarray:
        """The outline of each picture.     → float32 (N, 1, 32, 32)"""
        return outline(self.scenes)

    def to_read(self) -> Shapes:
        """Others, among which all combinations occur: a reader that never saw a red cross would call it something else."""
        return shapes("reader")

    def mismatched(self, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
        """For each of these rows a caption that is false of its picture, and names nothing that is held out.

        One of the attributes that the picture's own caption states is changed, each other with probability 1/4, so that half
        or more of the false captions are false in a single word.
        """
        return [say(self._changed(self.stated[row], rng), rng) for row in rows]

    @staticmethod
    def _changed(stated: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        while True:
            change = (rng.random(4) < 0.25) & (stated >= 0)
            change[rng.choice(np.flatnonzero(stated >= 0))] = True
            wrong = stated.copy()
            for column in np.flatnonzero(change):  # to any other value, all alike
                count = len(list(ATTRIBUTES.values())[column])
                wrong[column] = (stated[column] + rng.integers(1, count)) % count
            if not is_unseen(wrong):
                return wrong


def shapes(split: str = "train", seed: int = 0, n: int | None = None) -> Shapes:
    """A split of the data set: 20,000 pictures to learn from ("train"), 2,000 to test, or 20,000 for a reader; or n of them.

    Sizes, positions, and colours with shapes (in training those of `UNSEEN` left out) are uniform. A caption states the
    shape in 95 of 100 cases, the colour in 90, size and position in 75 each, and at least one of them.
    Raises DataError for another split, or n below 1.
    """
    if split not in COUNTS:
        raise DataError(f"split: expected 'train', 'test' or 'reader', got {split!r}.")
    n = COUNTS[split] if n is None else n
    require_natural("n", n, 1)
    rng = np.random.default_rng((seed, list(COUNTS).index(split)))
    pairs = _SEEN if split == "train" else np.stack(np.divmod(np.arange(36), 6), 1)
    colour, shape = pairs[rng.integers(len(pairs), size=n)].T
    attributes = np.stack([rng.integers(2, size=n), colour, shape, rng.integers(9, size=n)], 1)  # (N, 4)
    open_ = rng.random((n, 4)) >= np.array([0.75, 0.9, 0.95, 0.75])
    open_[open_.all(1), SHAPE] = False
    stated = np.where(open_, -1, attributes)
    made = scenes(attributes[:, None], rng)
    captions = tuple(say(row, rng) for row in stated)
    return Shapes(draw(made), None, (), "shapes", captions, attributes, ATTRIBUTES, stated, is_unseen(attributes), scenes=made)
