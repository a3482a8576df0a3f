"""Data sets and batches: NumPy arrays in, NumPy arrays out.

    load("digits").x                    float32 (N, C, H, W) in [0, 1]
    load("python-docs").text            one string
    next(batches(images, 64, seed=0))   (x, y), drawn without replacement within an epoch
    windows(tokens, 128, 32, seed=0, step=7)

A batch is a pure function of (seed, step), so a run resumed at step k sees what the uninterrupted run saw, and
skipping k steps costs nothing. Nothing is ever unpickled, and nothing is fetched where a local copy exists.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import gzip
import importlib.util
import itertools
import os
import re
import stat
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "DataError",
    "Images",
    "Source",
    "Text",
    "batches",
    "catalogue",
    "load",
    "mixture",
    "mixture_modes",
    "reads",
    "windows",
]


class DataError(ValueError):
    """A data set is missing or is not what was expected; the message is one sentence that says which and how."""


@dataclass(frozen=True, eq=False)
class Images:
    """Pictures, with class labels or without.

    x: float32 (N, C, H, W) in [0, 1];  y: int64 (N,) in [0, len(classes)), or None;  classes: the name of each label.

    Raises DataError where the arrays are anything else, NaN included.
    """

    x: np.ndarray
    y: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    name: str = "images"

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 4:
            raise DataError(f"{self.name}: x must be a float32 array of shape (N, C, H, W), got {_kind(x)}.")
        if 0 in x.shape:
            raise DataError(f"{self.name}: x is empty; expected at least one image and one pixel, got shape {x.shape}.")
        _require_pixels(x, self.name)
        if y is None:
            return
        if not isinstance(y, np.ndarray) or y.dtype != np.int64 or y.shape != x.shape[:1]:
            raise DataError(f"{self.name}: y must be an int64 array of shape {x.shape[:1]}, got {_kind(y)}.")
        if y.min() < 0 or y.max() >= len(self.classes):
            raise DataError(
                f"{self.name}: expected labels in [0, {len(self.classes)}), the number of class names, "
                f"got values from {y.min()} to {y.max()}."
            )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        classes = "" if self.y is None else f", {len(self.classes)} classes"
        return f"Images(name={self.name!r}, {len(self):,} pictures of shape {self.shape}{classes})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.x.shape[1:]


@dataclass(frozen=True)
class Text:
    """One non-empty string."""

    text: str
    name: str = "text"

    def __post_init__(self) -> None:
        if not self.text:
            raise DataError(f"{self.name}: the text is empty; expected at least one character.")

    def __len__(self) -> int:
        return len(self.text)

    def __repr__(self) -> str:
        return f"Text(name={self.name!r}, {len(self):,} characters)"


# ---------------------------------------------------------------------------------------------------- what there is


@dataclass(frozen=True)
class Source:
    """One row of `catalogue()`; `where` is None for what has to be downloaded first."""

    name: str
    what: str
    licence: str
    where: str | None


_ABOUT = {
    "digits": (
        "1 797 handwritten digits, 8×8, grey, 10 classes",
        "CC BY 4.0, UCI Optical Recognition of Handwritten Digits (Alpaydin & Kaynak), inside scikit-learn",
    ),
    "fashion-mnist": ("70 000 pictures of clothes, 28×28, grey, 10 classes", "MIT, Zalando SE (Xiao, Rasul & Vollgraf 2017)"),
    "mnist": ("70 000 handwritten digits, 28×28, grey, 10 classes", "CC BY-SA 3.0, LeCun, Cortes & Burges (1998)"),
    "python-docs": ("about 465 kB of English prose about Python", "PSF licence, pydoc_data.topics, inside CPython"),
}

# The checksums are those the publishers give for the gzip files at these addresses.
_URL = {
    "fashion-mnist": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
}
_MD5 = {
    "fashion-mnist": {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    "mnist": {
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    },
}
_CLASSES = {
    "fashion-mnist": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    "mnist": tuple("0123456789"),
}
_SYSTEM = {"fashion-mnist": (Path("/usr/share/datasets/fashion-mnist"), "dataset-fashion-mnist")}


def catalogue() -> list[Source]:
    """Every data set that has a name: what it is, its licence and source, and where it was found here.

    Opens no data and no connection, so it is quick, and safe to call offline.
    """

    def where(name: str) -> str | None:
        if name == "digits":
            return "scikit-learn" if importlib.util.find_spec("sklearn") else None
        if name == "python-docs":
            return "pydoc_data.topics" if importlib.util.find_spec("pydoc_data") else None
        found = [_find_idx(name, file) for file in _MD5[name]]
        return str(found[0].parent) if all(found) else None

    return [Source(name, what, licence, where(name)) for name, (what, licence) in _ABOUT.items()]


# ---------------------------------------------------------------------------------------------------------- loading


def load(
    name_or_path: str | os.PathLike[str], *, split: str = "train", seed: int = 0, size: int | tuple[int, int] | None = None
) -> Images | Text:
    """One split of a data set, by its name or by the path to your own.

    A name of `catalogue()`, or a path to

        a .txt file, or a folder of them      UTF-8; files in the order of their paths, a blank line between two
        a folder of images                    labels from sub-folders if there are any; `size` resizes to (H, W)
        a .npz file                           x: uint8 in 0..255 or floats in [0, 1], (N, C, H, W) or (N, H, W);
                                              optionally y: integers (N,)

    Links in a folder are followed; what is hidden (its name begins with a dot) is left out.

    split: "train" or "test". A source that comes in parts keeps them: sub-folders or text files named train and test, in
    any case, alone or joined to a common word (my-train, my-test); in a .npz, x_train and x_test. Where there is no test
    part, the validation part (val, valid) is held out; where there are both, nothing is learned from either, and the test
    part is held out. Other images are dealt out by a permutation drawn from `seed`, 4/5 to train and 1/5 to test; and
    other text is cut once, the first 9/10 to train and the rest to test, since neighbouring text is no fair test.

    Raises DataError: unknown name, nothing found, wrong type, shape or range, NaN, text that is not UTF-8, no network, a
    file or folder that is damaged or cannot be read, parts beside which there is more.
    """
    if split not in ("train", "test"):
        raise DataError(f"split: expected 'train' or 'test', got {split!r}.")
    _require_natural("seed", seed, 0)
    name, path = str(name_or_path), _expanded(name_or_path)
    folder_of_images = False
    if name == "digits":
        data = _digits(split, seed)
    elif name == "python-docs":
        data = Text(_cut(_python_docs(), split, name), name)
    elif name in _MD5:
        data = _idx_images(name, split)
    elif path.is_dir():
        data, folder_of_images = _load_folder(path, split, seed, size)
    elif path.is_file() and path.suffix.lower() == ".txt":
        data = Text(_cut(_read_text(path), split, path), path.stem)
    elif path.is_file() and path.suffix.lower() == ".npz":
        data = _load_npz(path, split, seed)
    elif path.exists():
        raise DataError(f"{path}: expected a .txt file, a .npz file or a folder, got a file ending in {path.suffix!r}.")
    else:
        near = "".join(f" (did you mean {guess!r}?)" for guess in difflib.get_close_matches(name, _ABOUT, n=1))
        raise DataError(
            f"no data set and no file is called {name!r}{near}; expected one of {', '.join(_ABOUT)}, "
            f"or the path of a .txt file, a .npz file or a folder."
        )
    if size is not None and not folder_of_images:
        raise DataError(f"size: only a folder of images can be resized, got size={size!r} for {name!r}.")
    return data


def _digits(split: str, seed: int) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits ships inside scikit-learn, which is missing: pip install scikit-learn.") from error
    x, y = load_digits(return_X_y=True)
    rows = _deal(len(x), split, seed, "digits")
    x = (x.reshape(-1, 1, 8, 8) / 16).astype(np.float32)  # each pixel counts the ink in a 4×4 block: 0..16
    return Images(x[rows], y[rows].astype(np.int64), tuple("0123456789"), "digits")


def _python_docs() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("python-docs is the module pydoc_data.topics, which this Python lacks.") from error
    return "\n\n".join(topics[key].strip() for key in sorted(topics)) + "\n"


def _idx_images(name: str, split: str) -> Images:
    prefix = {"train": "train", "test": "t10k"}[split]
    x = _read_idx(_find_or_fetch(name, f"{prefix}-images-idx3-ubyte"), ndim=3)
    y = _read_idx(_find_or_fetch(name, f"{prefix}-labels-idx1-ubyte"), ndim=1)
    return Images(_pixels(x, name), y.astype(np.int64), _CLASSES[name], name)


def _expanded(path: str | os.PathLike[str]) -> Path:
    """With ~ as the user's home, where that is known; else ~ stays, and is a name like any other."""
    return Path(os.path.expanduser(path))


def _cache() -> Path | None:
    """The folder of what was downloaded; None for a user who has no home, as in some containers."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "scratchgen"
    cache = _expanded("~/.cache/scratchgen")
    return None if cache.parts[0] == "~" else cache


def _find_idx(name: str, file: str) -> Path | None:
    folders = [root / name for root in (_cache(),) if root]
    if os.environ.get("SCRATCHGEN_DATA"):
        folders.insert(0, _expanded(os.environ["SCRATCHGEN_DATA"]) / name)
    if name in _SYSTEM:
        folders.append(_SYSTEM[name][0])
    candidates = (folder / (file + suffix) for folder in folders for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _find_or_fetch(name: str, file: str) -> Path:
    found, cache = _find_idx(name, file), _cache()
    if found:
        return found
    try:
        if cache is None:
            raise FileNotFoundError("no folder to keep it in, since neither XDG_CACHE_HOME nor HOME is set")
        import pooch

        return Path(
            pooch.retrieve(
                f"{_URL[name]}{file}.gz", known_hash=f"md5:{_MD5[name][file]}", fname=f"{file}.gz", path=cache / name
            )
        )
    except (ImportError, OSError, ValueError) as error:  # no pooch; no network; another checksum
        ways = [f"put {file} (or .gz) into $SCRATCHGEN_DATA/{name}/" + (f" or {cache / name}/" if cache else "")]
        if name in _SYSTEM:
            ways.append(f"install the system package {_SYSTEM[name][1]}")
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
    expected, given = head + int(np.prod(shape, dtype=object)), len(raw)
    if given != expected:
        raise DataError(f"{path}: its header announces shape {shape}, so {expected} bytes were expected, got {given}.")
    return np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(shape)


# What the parts of a data set are called: to learn from, to test, and to choose by.
_ROLES = {
    name: names[0] for names in (("train", "training"), ("test", "testing"), ("valid", "val", "validation")) for name in names
}


def _chosen(roles: dict[str, set[str]], where: object) -> dict[str, str]:
    """Which name to take for each split, where the names of the parts were found, under what they are for."""
    doubled = next((names for names in roles.values() if len(names) > 1), None)
    if doubled:
        raise DataError(f"{where}: expected one part of each kind, got {' and '.join(sorted(doubled))}.")
    name = {role: next(iter(names)) for role, names in roles.items()}
    return {"train": name["train"], "test": name.get("test") or name["valid"]}


def _load_npz(path: Path, split: str, seed: int) -> Images:
    try:
        # Opened here, since NumPy leaves a damaged file open.
        with open(path, "rb") as file, _unwarned(), np.load(file, allow_pickle=False) as archive:
            roles: dict[str, set[str]] = {}
            for key in archive.files:
                if key.startswith("x_") and key[2:].lower() in _ROLES:
                    roles.setdefault(_ROLES[key[2:].lower()], set()).add(key)
            if roles and "x" in archive:
                raise DataError(f"{path}: expected x, or parts of it, got x and {', '.join(map(min, roles.values()))}.")
            parted = "train" in roles and len(roles) > 1
            x_keys = _chosen(roles, path) if parted else {s: f"x_{s}" if roles else "x" for s in ("train", "test")}
            y_keys = {part: f"y{key[1:]}" for part, key in x_keys.items()}
            x_key, y_key = x_keys[split], y_keys[split]
            if x_key not in archive:
                raise DataError(
                    f"{path}: expected an array called {x_key!r}, and optionally {y_key!r}, "
                    f"got {sorted(archive.files) or 'no arrays'}."
                )
            x, y = archive[x_key], archive[y_key] if y_key in archive else None
            every_y = [archive[key] for key in sorted(set(y_keys.values())) if key in archive]
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: its arrays are larger than the memory ({error}).") from error
    except Exception as error:  # from zip, the decompressors and NumPy's own headers
        if _refused(error):
            raise _unreadable(path, error) from error
        # NumPy's own words would advise allow_pickle=True, which runs whatever code the file holds.
        raise DataError(
            f"{path}: expected an .npz archive of plain numeric arrays, got one that is damaged or holds Python objects."
        ) from error
    x = _pixels(x, path)
    _require_pixels(x, f"{path}: {x_key}")  # before the rows are dealt out, and numbered anew
    classes = ()
    if y is not None:
        if any(part.dtype.kind not in "iu" for part in every_y) or y.shape != x.shape[:1]:
            raise DataError(f"{path}: {y_key} must be integers of shape {x.shape[:1]}, got {_kind(y)}.")
        # Both parts count: a class that the test happens to lack is still a class of the model.
        largest = max((int(part.max()) for part in every_y if part.size), default=-1)
        if largest >= 2**16:
            raise DataError(f"{path}: expected classes numbered from 0 and below {2**16}, got {largest} in {y_key}.")
        y, classes = y.astype(np.int64), tuple(map(str, range(largest + 1)))
    if not roles:
        rows = _deal(len(x), split, seed, path)
        x, y = x[rows], None if y is None else y[rows]
    return Images(x, y, classes, path.stem)


_SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)


def _load_folder(folder: Path, split: str, seed: int, size: int | tuple[int, int] | None) -> tuple[Images | Text, bool]:
    """What the folder holds, and whether that is images."""
    folders, files = _tree(folder)
    texts = [f for f in files if f.suffix.lower() == ".txt"]
    images = [f for f in files if f.suffix.lower() in _SUFFIXES]
    if bool(texts) == bool(images):
        given = f"{len(texts)} and {len(images)} of them" if texts else f"neither among its {len(files)} files"
        raise DataError(f"{folder}: expected a folder of .txt files or of images, got {given}.")
    name, parts = folder.resolve().name, _parts(folder, folders, texts or images)
    if parts:
        chosen = [f for f in texts or images if f.parts[0] == parts[split]]
        if not chosen:
            raise DataError(f"{folder / parts[split]}: expected .txt files or images, got none.")
    if texts:
        text = "\n\n".join(_read_text(folder / f) for f in (chosen if parts else texts))
        return Text(text if parts else _cut(text, split, folder), name), False

    # All parts count: a class that the test happens to lack is still a class of the model.
    def inside(file: Path) -> tuple[str, ...]:
        return file.parts[1:] if parts else file.parts

    classes = tuple(sorted({inside(f)[0] for f in images if len(inside(f)) > 1}))
    if classes and any(len(inside(f)) == 1 for f in images):
        raise DataError(f"{folder}: expected images either all in sub-folders (their classes) or none, got both.")
    if not parts:
        chosen = [images[row] for row in _deal(len(images), split, seed, folder)]
    y = np.array([classes.index(inside(f)[0]) for f in chosen], dtype=np.int64) if classes else None
    return Images(_read_images([folder / f for f in chosen], size), y, classes, name), True


def _parts(folder: Path, folders: list[Path], files: list[Path]) -> dict[str, str] | None:
    """Which sub-folder, or which text file, is which split, where the folder comes in parts.

    Raises DataError where that is only half so: two parts for one split, more beside the parts, parts further down.
    """
    found: dict[tuple[Path, str], dict[str, set[str]]] = {}  # (where, common word) → what for → names
    for path in [*folders, *(f for f in files if f.suffix.lower() == ".txt")]:
        words = re.split(r"([._-])", (path.name if path in folders else path.stem).lower())
        for word, others in ((words[-1], words[:-1]), (words[0], words[1:])):
            if word in _ROLES:
                common = "".join(others).strip("._-")
                found.setdefault((path.parent, common), {}).setdefault(_ROLES[word], set()).add(path.name)
                break
    whole = {key: roles for key, roles in found.items() if "train" in roles and len(roles) > 1}
    if not whole:
        return None
    (where, _), roles = next(iter(whole.items()))
    names = sorted(name for each in roles.values() for name in each)
    if len(whole) > 1 or where != Path():
        raise DataError(
            f"{folder}: expected its parts at the top, and once, got {' and '.join(names)} in {folder / where}; "
            f"name the folder that holds just one data set."
        )
    beside = sorted({f.parts[0] for f in files} - set(names))
    if beside:
        raise DataError(f"{folder}: expected nothing to learn from beside {' and '.join(names)}, got {beside[0]}.")
    return _chosen(roles, folder)


def _tree(folder: Path) -> tuple[list[Path], list[Path]]:
    """All folders and all files below a folder, relative to it, in the order of their paths.

    Links are followed, and what is hidden is left out.

    Raises DataError where anything cannot be read, or a link leads back to a folder that holds it.
    """
    folders, files, waiting = [], [], [(Path(), frozenset[tuple[int, int]]())]
    while waiting:
        here, above = waiting.pop()
        try:
            status = os.stat(folder / here)
            if not stat.S_ISDIR(status.st_mode):
                if not stat.S_ISREG(status.st_mode) and here.suffix.lower() in _SUFFIXES | {".txt"}:
                    raise DataError(f"{folder / here}: expected a file, got a device or a pipe.")
                files += [here] * stat.S_ISREG(status.st_mode)
                continue
            this = status.st_dev, status.st_ino
            if this in above:
                raise DataError(f"{folder / here}: a link back to a folder that holds it, so that its files would not end.")
            folders.append(here)
            waiting += [(here / name, above | {this}) for name in os.listdir(folder / here) if not name.startswith(".")]
        except OSError as error:
            raise _unreadable(folder / here, error) from error
    return sorted(folders, key=Path.as_posix), sorted(files, key=Path.as_posix)


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Without the remarks of a decoder on what it passes over: what it cannot read, it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _refused(error: Exception) -> bool:
    """Does the system refuse the file, rather than a decoder its content, or what that says of places in the file (EINVAL)?"""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}).")


def reads(name_or_path: str | os.PathLike[str], file: Path) -> bool:
    """Would `load` take what is written to `file` for a part of this data set? Raises DataError as `load` does."""
    folder, file = _expanded(name_or_path), file.resolve()
    if str(name_or_path) in _ABOUT or not folder.is_dir():
        return False
    homes = ((folder / below).resolve() for below in _tree(folder)[0])
    return any(
        file.is_relative_to(home) and not any(part.startswith(".") for part in file.relative_to(home).parts) for home in homes
    )


def _read_images(files: list[Path], size: int | tuple[int, int] | None) -> np.ndarray:
    """Grey if every picture is grey, else RGB; transparency is laid over white, as on a page."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise DataError("a folder of images needs Pillow, which is not installed: pip install pillow.") from error
    side = None
    if size is not None:
        height, width = size if isinstance(size, tuple) and len(size) == 2 else (size, size)
        _require_natural("size", height, 1)
        _require_natural("size", width, 1)
        side = width, height

    pictures: list[Any] = []
    for file in files:
        try:
            with _unwarned():
                picture = _read_image(file, side)
        except DataError:
            raise
        except Exception as error:  # a decoder of damaged bytes raises what its code runs into
            if _refused(error):
                raise _unreadable(file, error) from error
            raise DataError(
                f"{file}: expected an image that Pillow can read, got one that is damaged or no image "
                f"({type(error).__name__}: {' '.join(str(error).split()).rstrip('.')})."
            ) from error
        if pictures and picture.size != pictures[0].size:
            raise DataError(
                f"{file}: expected {_h_by_w(pictures[0])} like {files[0].name}, got {_h_by_w(picture)}; size= resizes them all."
            )
        pictures.append(picture)
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    x = np.stack([np.asarray(picture.convert(mode)) for picture in pictures])  # (N, H, W) or (N, H, W, 3)
    return _pixels(x if mode == "L" else np.ascontiguousarray(x.transpose(0, 3, 1, 2)), files[0].parent)


def _read_image(file: Path, size: tuple[int, int] | None) -> Any:
    """One picture, in Pillow's mode L or RGB, resized to (width, height) if wished. Raises whatever Pillow raises."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        picture = ImageOps.exif_transpose(opened)  # a camera stores the turn beside the pixels
    if picture.mode.startswith(("I", "F")):
        raise DataError(f"{file}: expected 8 bits a channel, got Pillow mode {picture.mode!r}.")
    grey = picture.mode in ("1", "L", "LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if grey else "RGB")
    if size is None or picture.size == size:
        return picture
    return picture.resize(size, Image.Resampling.BOX)  # BOX: the mean of what a pixel covers


def _h_by_w(picture) -> str:
    return f"{picture.height}×{picture.width} (height × width)"


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # -sig: without the byte-order mark, if there is one
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, got the byte 0x{error.object[error.start]:02x} at offset {error.start}."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _pixels(x: np.ndarray, name: object) -> np.ndarray:
    """(N, H, W) or (N, C, H, W), uint8 or floats → float32 (N, C, H, W)."""
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise DataError(f"{name}: expected pixels as uint8 in 0..255 or as floats in [0, 1], got {_kind(x)}.")
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise DataError(
            f"{name}: expected shape (N, C, H, W), got {x.shape}, whose channels come last; x.transpose(0, 3, 1, 2) moves them."
        )
    if x.ndim not in (3, 4):
        raise DataError(f"{name}: expected shape (N, C, H, W) or (N, H, W), got {x.shape}.")
    x = x[:, None] if x.ndim == 3 else x
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    with np.errstate(over="ignore", under="ignore"):  # too large for float32 is infinite, and is refused so
        return x.astype(np.float32)


def _require_pixels(x: np.ndarray, name: object) -> None:
    """Raises DataError, with the number of the first bad image, where a pixel of x (N, …) is not in [0, 1]."""
    with np.errstate(invalid="ignore"):
        bad = ~((x >= 0) & (x <= 1)).all(axis=tuple(range(1, x.ndim)))  # NaN is neither
    if bad.any():
        first = int(np.argmax(bad))
        given = f"values from {x[first].min():g} to {x[first].max():g}" if np.isfinite(x[first]).all() else "NaN or infinity"
        raise DataError(f"{name}: expected finite pixels in [0, 1], got {given}, first in image {first}.")


def _deal(n: int, split: str, seed: int, name: object) -> np.ndarray:
    """The rows of a split, ascending: a permutation of range(n) from `seed`, its last fifth for the test."""
    order = np.random.default_rng(seed).permutation(n)
    rows = np.sort(order[n - n // 5 :] if split == "test" else order[: n - n // 5])
    if not len(rows):
        raise DataError(f"{name}: expected at least {5 if split == 'test' else 1} images for a {split} split, got {n}.")
    return rows


def _cut(text: str, split: str, name: object) -> str:
    at = len(text) - len(text) // 10
    part = text[at:] if split == "test" else text[:at]
    if not part:
        raise DataError(
            f"{name}: expected at least {10 if split == 'test' else 1} characters for a {split} split, got {len(text)}."
        )
    return part


def _kind(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _require_natural(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise DataError(f"{name}: expected a whole number of at least {least}, got {value!r}.")


# ---------------------------------------------------------------------------------------------------------- batches


def batches(
    data: Images | np.ndarray,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """An endless run of shuffled batches (x, y), beginning with batch number `start`.

        batch k = rows π_e[j·B : (j+1)·B],   e = k div m,  j = k mod m,  m = N div B,
        π_e = the permutation of range(N) drawn from the seed (seed, e)

    data: Images, or any array of N rows (then y is None);  x: (B, …), y: (B,) or None, both copies.
    The N mod B rows left over sit an epoch out; which they are changes with the epoch.

    Raises DataError at the call, not at the first batch: B larger than N, a negative seed or start.
    """
    x, y = (data.x, data.y) if isinstance(data, Images) else (np.asarray(data), None)
    if x.ndim == 0:
        raise DataError("batches: expected Images or an array with rows, got a single number.")
    _require_natural("batch_size", batch_size, 1)
    _require_natural("seed", seed, 0)
    _require_natural("start", start, 0)
    if batch_size > len(x):
        raise DataError(f"batch_size: expected at most {len(x)}, the number of rows, got {batch_size}.")

    def run() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        m = len(x) // batch_size
        for k in itertools.count(start):
            epoch, j = divmod(k, m)
            if j == 0 or k == start:
                order = np.random.default_rng((seed, epoch)).permutation(len(x))
            rows = order[j * batch_size : (j + 1) * batch_size]
            yield x[rows], None if y is None else y[rows]

    return run()


def windows(
    tokens: np.ndarray,
    block_size: int,
    batch_size: int,
    *,
    seed: int,
    step: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Batch number `step` of random windows of a token sequence, and the same windows one token later.

        x_b = t[i_b : i_b + T],   y_b = t[i_b + 1 : i_b + T + 1],   i_b uniform on 0 … n − T − 1, from (seed, step)

    tokens: integers (n,), an array or a memory map;  T = block_size;  x, y: int64 (batch_size, T).

    Raises DataError: tokens that are not one row of integers, fewer than T + 1 of them, or a batch of 2³¹ windows or more.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"tokens: expected integers of shape (n,), got {_kind(tokens)}.")
    for name, value, least in (
        ("block_size", block_size, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("step", step, 0),
    ):
        _require_natural(name, value, least)
    if len(tokens) <= block_size:
        raise DataError(f"tokens: expected at least block_size + 1 = {block_size + 1} of them, got {len(tokens)}.")
    if batch_size >= 2**31:  # more than any memory holds
        raise DataError(f"batch_size: expected a number below {2**31}, got {batch_size}.")
    first = np.random.default_rng((seed, step)).integers(0, len(tokens) - block_size, size=batch_size)
    window = tokens[first[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1)
    return window[:, :-1].copy(), window[:, 1:].copy()


# ------------------------------------------------------------------------------------------------- toy distributions


def mixture_modes(name: str) -> tuple[np.ndarray, float]:
    """Centres μ: float32 (K, 2) and the standard deviation σ of a toy mixture of Gaussians in the plane.

        "ring"   μ_k = 2 (cos 2πk/8, sin 2πk/8),  k < 8,   σ = 0.02     Metz et al. 2017, Unrolled GANs
        "grid"   μ   = {−4, −2, 0, 2, 4}²,                 σ = 0.05     Lin et al. 2018, PacGAN

    Raises DataError for another name.
    """
    if name == "ring":
        angle = 2 * np.pi * np.arange(8) / 8
        return 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32), 0.02
    if name == "grid":
        side = np.arange(-4, 5, 2, dtype=np.float32)
        return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2), 0.05
    raise DataError(f"mixture: expected 'ring' or 'grid', got {name!r}.")


def mixture(name: str, n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n points of a toy mixture, and the mode each came from.

        k ~ uniform on 0 … K − 1,   x = μ_k + σ ε,   ε ~ N(0, I)

    x: float32 (n, 2);  k: int64 (n,);  μ and σ from `mixture_modes(name)`.
    """
    centres, sigma = mixture_modes(name)
    _require_natural("n", n, 0)
    _require_natural("seed", seed, 0)
    rng = np.random.default_rng(seed)
    mode = rng.integers(0, len(centres), size=n)
    return (centres[mode] + sigma * rng.standard_normal((n, 2))).astype(np.float32), mode
