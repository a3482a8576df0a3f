"""Data sets that have a name: what each is, where it is found, and how it is fetched once where it is not here.

A new one is a function that returns a split of it, and a row of `NAMED`.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scratchgen.data.checks import DataError
from scratchgen.data.images import Images, deal, pixels
from scratchgen.data.pairs import Pairs, of_edges, of_outlines
from scratchgen.data.points import Points, mixture, mixture_modes
from scratchgen.data.shapes import shapes
from scratchgen.data.texts import Text, cut


@dataclass(frozen=True)
class Source:
    """One row of `catalogue()`; `where` is None for what has to be downloaded first."""

    name: str
    what: str
    licence: str
    where: str | None


class Named(NamedTuple):
    """A data set that has a name."""

    what: str
    licence: str
    load: Callable[[str, int], Images | Text | Pairs | Points]  # a split ("train" or "test") dealt out by a seed
    where: Callable[[], str | None]  # where it is found here, None for what has to be downloaded first


def catalogue() -> list[Source]:
    """Every data set that has a name: what it is, its licence and source, and where it was found here.

    Opens no data and no connection, so it is quick, and safe to call offline.
    """
    return [Source(name, row.what, row.licence, row.where()) for name, row in NAMED.items()]


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ~ as the user's home, where that is known; else ~ stays, and is a name like any other."""
    return Path(os.path.expanduser(path))


# ---------------------------------------------------------------------------------------------------------------------
# Inside installed packages
# ---------------------------------------------------------------------------------------------------------------------


def _digits(split: str, seed: int) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits ships inside scikit-learn, which is missing: pip install scikit-learn.") from error
    x, y = load_digits(return_X_y=True)
    rows = deal(len(x), split, seed, "digits")
    x = (x.reshape(-1, 1, 8, 8) / 16).astype(np.float32)  # each pixel counts the ink in a 4×4 block: 0..16
    return Images(x[rows], y[rows].astype(np.int64), tuple("0123456789"), "digits")


def _python_docs(split: str, seed: int) -> Text:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("python-docs is the module pydoc_data.topics, which this Python lacks.") from error
    text = "\n\n".join(topics[key].strip() for key in sorted(topics)) + "\n"
    return Text(cut(text, split, "python-docs"), "python-docs")


# ---------------------------------------------------------------------------------------------------------------------
# Drawn here
# ---------------------------------------------------------------------------------------------------------------------


def _mixture(name: str) -> Callable[[str, int], Points]:
    """Draws a split of the toy mixture of that name: 50,000 points to learn from, or 10,000 to test."""

    def load(split: str, seed: int) -> Points:
        n, own = (50_000, 2 * seed) if split == "train" else (10_000, 2 * seed + 1)
        return Points(mixture(name, n, seed=own)[0], *mixture_modes(name), name)

    return load


# ---------------------------------------------------------------------------------------------------------------------
# IDX files: found, or downloaded
# ---------------------------------------------------------------------------------------------------------------------


class IdxFiles(NamedTuple):
    """Pictures and labels as the four files of the MNIST format, gzipped or not."""

    url: str  # of the folder that holds the files
    md5: dict[str, str]  # file -> the checksum that its publisher gives for the gzip file at the url
    classes: tuple[str, ...]
    package: tuple[Path, str] | None = None  # where a system package puts the files, and its name


IDX = {
    "fashion-mnist": IdxFiles(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        {
            "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        (Path("/usr/share/datasets/fashion-mnist"), "dataset-fashion-mnist"),
    ),
    "mnist": IdxFiles(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        tuple("0123456789"),
    ),
}


def _idx_images(name: str) -> Callable[[str, int], Images]:
    """Loads a split of the IDX files of that name; the split is the publisher's, whatever the seed."""

    def load(split: str, seed: int) -> Images:
        prefix = {"train": "train", "test": "t10k"}[split]
        x = _read_idx(_find_or_fetch(name, f"{prefix}-images-idx3-ubyte"), ndim=3)
        y = _read_idx(_find_or_fetch(name, f"{prefix}-labels-idx1-ubyte"), ndim=1)
        return Images(pixels(x, name), y.astype(np.int64), IDX[name].classes, name)

    return load


def _idx_folder(name: str) -> Callable[[], str | None]:
    """Tells the folder of the IDX files of that name, where all of them are here."""

    def where() -> str | None:
        found = [_find(name, file) for file in IDX[name].md5]
        return str(found[0].parent) if all(found) else None

    return where


def cache() -> Path | None:
    """The folder of what was downloaded or made once; None for a user who has no home, as in some containers."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "scratchgen"
    folder = expanded("~/.cache/scratchgen")
    return None if folder.parts[0] == "~" else folder


def _find(name: str, file: str) -> Path | None:
    folders = [root / name for root in (cache(),) if root]
    if os.environ.get("SCRATCHGEN_DATA"):
        folders.insert(0, expanded(os.environ["SCRATCHGEN_DATA"]) / name)
    if IDX[name].package:
        folders.append(IDX[name].package[0])
    candidates = (folder / (file + suffix) for folder in folders for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _find_or_fetch(name: str, file: str) -> Path:
    found, folder, idx = _find(name, file), cache(), IDX[name]
    if found:
        return found
    try:
        if folder is None:
            raise FileNotFoundError("no folder to keep it in, since neither XDG_CACHE_HOME nor HOME is set")
        import pooch

        return Path(
            pooch.retrieve(f"{idx.url}{file}.gz", known_hash=f"md5:{idx.md5[file]}", fname=f"{file}.gz", path=folder / name)
        )
    except (ImportError, OSError, ValueError) as error:  # no pooch; no network; another checksum
        ways = [f"put {file} (or .gz) into $SCRATCHGEN_DATA/{name}/" + (f" or {folder / name}/" if folder else "")]
        if idx.package:
            ways.append(f"install the system package {idx.package[1]}")
        ways.append("connect to the network with pooch installed, and it is downloaded once")
        raise DataError(
            f"{name}: {file} is not here and could not be downloaded ({type(error).__name__}: {error}); {'; or '.join(ways)}."
        ) from error


def _read_idx(path: Path, *, ndim: int) -> np.ndarray:
    """The IDX format: bytes 0, 0, 8 (uint8), ndim; then ndim big-endian uint32 sizes; then the values, C order."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            raw = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a whole gzip file, got a damaged one ({error}).") from error
    if raw[:4] != bytes((0, 0, 8, ndim)):
        raise DataError(
            f"{path}: expected an IDX file of uint8 in {ndim} dimensions, which begins with the bytes "
            f"{bytes((0, 0, 8, ndim)).hex(' ')}, got {raw[:4].hex(' ') or 'nothing'}."
        )
    head = 4 + 4 * ndim
    shape = tuple(int(n) for n in np.frombuffer(raw[4:head].ljust(4 * ndim, b"\0"), dtype=">u4"))
    expected = head + int(np.prod(shape, dtype=object))
    if len(raw) != expected:
        raise DataError(f"{path}: its header announces shape {shape}, so {expected} bytes were expected, got {len(raw)}.")
    return np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(shape)


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------

NAMED = {
    "digits": Named(
        "1 797 handwritten digits, 8×8, grey, 10 classes",
        "CC BY 4.0, UCI Optical Recognition of Handwritten Digits (Alpaydin & Kaynak), inside scikit-learn",
        _digits,
        lambda: "scikit-learn" if importlib.util.find_spec("sklearn") else None,
    ),
    "fashion-mnist": Named(
        "70 000 pictures of clothes, 28×28, grey, 10 classes",
        "MIT, Zalando SE (Xiao, Rasul & Vollgraf 2017)",
        _idx_images("fashion-mnist"),
        _idx_folder("fashion-mnist"),
    ),
    "fashion-edges": Named(
        "70 000 pairs: the edges of each picture of fashion-mnist, and the picture, 28×28, grey",
        "MIT, Zalando SE (Xiao, Rasul & Vollgraf 2017); the edges are made by code",
        lambda split, seed: of_edges(_idx_images("fashion-mnist")(split, seed), "fashion-edges"),
        _idx_folder("fashion-mnist"),
    ),
    "mnist": Named(
        "70 000 handwritten digits, 28×28, grey, 10 classes",
        "CC BY-SA 3.0, LeCun, Cortes & Burges (1998)",
        _idx_images("mnist"),
        _idx_folder("mnist"),
    ),
    "python-docs": Named(
        "about 465 kB of English prose about Python",
        "PSF licence, pydoc_data.topics, inside CPython",
        _python_docs,
        lambda: "pydoc_data.topics" if importlib.util.find_spec("pydoc_data") else None,
    ),
    "shapes": Named(
        "22 000 pictures of shapes, 32×32, RGB, with captions, attributes and outlines",
        "made by code",
        shapes,
        lambda: "scratchgen.data.shapes",
    ),
    "shapes-outlines": Named(
        "22 000 pairs: the outlines of shapes in their colours, and the pictures, 32×32, RGB",
        "made by code",
        lambda split, seed: of_outlines(shapes(split, seed), "shapes-outlines"),
        lambda: "made by code",
    ),
    "grid-25": Named(
        "60 000 points of the plane around a grid of 5×5 modes",
        "drawn by scratchgen from its seed (Lin et al. 2018)",
        _mixture("grid-25"),
        lambda: "scratchgen",
    ),
    "ring-8": Named(
        "60 000 points of the plane around a ring of 8 modes",
        "drawn by scratchgen from its seed (Metz et al. 2017)",
        _mixture("ring-8"),
        lambda: "scratchgen",
    ),
}
