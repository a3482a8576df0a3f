"""Data of the user's own: a text, an archive of arrays, a folder of texts or of pictures, whole or in parts, with captions."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.data.captions import Captioned, read_captions
from scratchgen.data.checks import DataError, kind, require_natural, unreadable
from scratchgen.data.images import Images, deal, pixels, require_pixels
from scratchgen.data.points import Points
from scratchgen.data.texts import Text, cut, read_text

# The names that a part of a data set has → its role: to learn from, to test, or to choose by.
_ROLES = {
    name: names[0] for names in (("train", "training"), ("test", "testing"), ("valid", "val", "validation")) for name in names
}


def _chosen(roles: dict[str, set[str]], where: object) -> dict[str, str]:
    """The name of the part that each split takes, of the names that were found for each role."""
    doubled = next((names for names in roles.values() if len(names) > 1), None)
    if doubled:
        raise DataError(f"{where}: expected one part of each kind, got {' and '.join(sorted(doubled))}.")
    name = {role: next(iter(names)) for role, names in roles.items()}
    return {"train": name["train"], "test": name.get("test") or name["valid"]}


def load_npz(path: Path, split: str, seed: int) -> Images | Points:
    """A split of the pictures or points in an archive of arrays: x and, optionally, y, or x_train, x_test, y_train, y_test."""
    try:
        # The file is opened here, since NumPy leaves a damaged one open.
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
            raise unreadable(path, error) from error
        # NumPy's own words would advise allow_pickle=True, which runs whatever code the file holds.
        raise DataError(
            f"{path}: expected an .npz archive of plain numeric arrays, got one that is damaged or holds Python objects."
        ) from error
    if x.ndim == 2 and x.shape[1] == 2 and x.dtype.kind in "fiu" and y is None:
        with np.errstate(over="ignore", under="ignore"):  # a value too large for float32 becomes infinite, which is refused
            x = x.astype(np.float32)
        return Points(x if roles else x[deal(len(x), split, seed, path)], name=path.stem)
    x = pixels(x, path)
    require_pixels(
        x, f"{path}: {x_key}"
    )  # checked before the rows are dealt out, so that the error tells an image's index in the file
    classes = ()
    if y is not None:
        if any(part.dtype.kind not in "iu" for part in every_y) or y.shape != x.shape[:1]:
            raise DataError(f"{path}: {y_key} must be integers of shape {x.shape[:1]}, got {kind(y)}.")
        # Both parts count: a class that the test happens to lack is still a class of the model.
        largest = max((int(part.max()) for part in every_y if part.size), default=-1)
        if largest >= 2**16:
            raise DataError(f"{path}: expected classes numbered from 0 and below {2**16}, got {largest} in {y_key}.")
        y, classes = y.astype(np.int64), tuple(map(str, range(largest + 1)))
    if not roles:
        rows = deal(len(x), split, seed, path)
        x, y = x[rows], None if y is None else y[rows]
    return Images(x, y, classes, path.stem)


SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)


def load_folder(folder: Path, split: str, seed: int, size: int | tuple[int, int] | None) -> tuple[Images | Text, bool]:
    """What the folder holds, and whether that is images."""
    folders, files = tree(folder)
    texts = [f for f in files if f.suffix.lower() == ".txt"]
    images = [f for f in files if f.suffix.lower() in SUFFIXES]
    if bool(texts) == bool(images):
        found = f"{len(texts)} and {len(images)} of them" if texts else f"neither among its {len(files)} files"
        raise DataError(f"{folder}: expected a folder of .txt files or of images, got {found}.")
    name, parts = folder.resolve().name, parts_of(folder, folders, texts or images)
    if parts:
        chosen = [f for f in texts or images if f.parts[0] == parts[split]]
        if not chosen:
            raise DataError(f"{folder / parts[split]}: expected .txt files or images, got none.")
    if texts:
        text = "\n\n".join(read_text(folder / f) for f in (chosen if parts else texts))
        return Text(text if parts else cut(text, split, folder), name), False

    if any(f.name == CAPTIONS for f in files):
        return _captioned(folder, Path(parts[split]) if parts else Path(), split, seed, size, images), True

    # All parts count: a class that the test happens to lack is still a class of the model.
    def inside(file: Path) -> tuple[str, ...]:
        return file.parts[1:] if parts else file.parts

    classes = tuple(sorted({inside(f)[0] for f in images if len(inside(f)) > 1}))
    if classes and any(len(inside(f)) == 1 for f in images):
        raise DataError(f"{folder}: expected images either all in sub-folders (their classes) or none, got both.")
    if not parts:
        chosen = [images[row] for row in deal(len(images), split, seed, folder)]
    y = np.array([classes.index(inside(f)[0]) for f in chosen], dtype=np.int64) if classes else None
    return Images(read_pictures([folder / f for f in chosen], size), y, classes, name), True


CAPTIONS = "captions.tsv"  # in a folder of pictures: lines of FILE, a tab, caption


def _captioned(
    folder: Path, part: Path, split: str, seed: int, size: int | tuple[int, int] | None, images: list[Path]
) -> Captioned:
    """The pictures in a part of a folder, all of whose captions are listed; where the folder is the part, a split of them."""
    top = folder / part
    captions = read_captions(read_text(top / CAPTIONS), top / CAPTIONS)
    chosen = [f for f in images if f.is_relative_to(part)]
    listed = {part / Path(file): caption for file, caption in captions.items()}
    absent, silent = sorted(set(listed) - set(chosen)), sorted(set(chosen) - set(listed))
    if absent:
        raise DataError(f"{top / CAPTIONS}: expected captions of pictures in that folder, got {absent[0].relative_to(part)}.")
    if silent:
        raise DataError(f"{top / CAPTIONS}: expected a caption for each picture, got none for {silent[0].relative_to(part)}.")
    if part == Path():
        chosen = [chosen[row] for row in deal(len(chosen), split, seed, folder)]
    x = read_pictures([folder / f for f in chosen], size)
    return Captioned(x, None, (), folder.resolve().name, tuple(listed[f] for f in chosen))


def parts_of(folder: Path, folders: list[Path], files: list[Path]) -> dict[str, str] | None:
    """The name of the sub-folder, or of the text file, that each split takes; None where the folder has no parts.

    Raises DataError for two parts of one split, for more data beside the parts, and for parts further down.
    """
    found: dict[tuple[Path, str], dict[str, set[str]]] = {}  # (folder, common word) → role → names
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


def tree(folder: Path) -> tuple[list[Path], list[Path]]:
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
                if not stat.S_ISREG(status.st_mode) and here.suffix.lower() in SUFFIXES | {".txt"}:
                    raise DataError(f"{folder / here}: expected a file, got a device or a pipe.")
                files += [here] * stat.S_ISREG(status.st_mode)
                continue
            this = status.st_dev, status.st_ino
            if this in above:
                raise DataError(f"{folder / here}: a link back to a folder that holds it, so that its files would not end.")
            folders.append(here)
            waiting += [(here / name, above | {this}) for name in os.listdir(folder / here) if not name.startswith(".")]
        except OSError as error:
            raise unreadable(folder / here, error) from error
    return sorted(folders, key=Path.as_posix), sorted(files, key=Path.as_posix)


def read_pictures(files: list[Path], size: int | tuple[int, int] | None, *, halves: bool = False) -> np.ndarray:
    """The pictures in these files: float32 (N, C, H, W) in [0, 1], grey if every picture is grey, else RGB.

    Transparency is laid over white, as on a page. `size` resizes to (H, W): with `halves`, each half of a picture.
    Raises DataError where one is damaged, of another size than the first, or, with `halves`, has no middle.
    """
    height, width = size if isinstance(size, tuple) and len(size) == 2 else (size, size)
    if size is not None:
        require_natural("size", height, 1)
        require_natural("size", width, 1)
    pictures: list[Any] = []
    for file in files:
        picture = _read_picture(file)
        if halves and picture.width % 2:
            raise DataError(
                f"{file}: expected two pictures of one size side by side, so an even width, got {_h_by_w(picture)}."
            )
        if size is not None:
            picture = _resized(picture, height, width * (1 + halves))
        if pictures and picture.size != pictures[0].size:
            raise DataError(
                f"{file}: expected {_h_by_w(pictures[0])} like {files[0].name}, got {_h_by_w(picture)}; size= resizes them all."
            )
        pictures.append(picture)
    return _stacked(pictures, "L" if all(picture.mode == "L" for picture in pictures) else "RGB")


def pictures_like(path: str | os.PathLike[str], shape: tuple[int, int, int]) -> np.ndarray:
    """The picture in a file, or those in a folder in the order of their paths, in the shape that a model takes.

    They are made grey or RGB, and resized where their sides have the ratio asked for: no picture is squashed.
    shape: (C, H, W), C 1 or 3;  result: float32 (N, C, H, W) in [0, 1].
    Raises DataError where there is none, one is damaged, or its sides have another ratio.
    """
    path, (channels, height, width) = Path(os.path.expanduser(path)), shape
    found = [path]
    if path.is_dir():
        found = [path / f for f in tree(path)[1] if f.suffix.lower() in SUFFIXES]
        if not found:
            raise DataError(f"{path}: expected a picture, or a folder of them, got a folder without any.")
    pictures = []
    for file in found:
        picture = _read_picture(file)
        if 2 * abs(picture.width * height - picture.height * width) > max(picture.size):  # half a pixel is rounding
            raise DataError(
                f"{file}: expected sides in the ratio of {height}×{width} (height × width), to which pictures are resized, "
                f"got {_h_by_w(picture)}; cut it to that shape."
            )
        pictures.append(_resized(picture, height, width))
    return _stacked(pictures, "L" if channels == 1 else "RGB")


def _stacked(pictures: list[Any], mode: str) -> np.ndarray:
    x = np.stack([np.asarray(picture.convert(mode)) for picture in pictures])  # (N, H, W) or (N, H, W, 3)
    return pixels(x if mode == "L" else np.ascontiguousarray(x.transpose(0, 3, 1, 2)), "pictures")


def _read_picture(file: Path) -> Any:
    """One picture, in Pillow's mode L or RGB. Raises DataError where it cannot be read."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError("a folder of images needs Pillow, which is not installed: pip install pillow.") from error
    try:
        with _unwarned():
            with Image.open(file) as opened:
                picture = ImageOps.exif_transpose(opened)  # a camera tells beside the pixels how it was turned
            if picture.mode.startswith(("I", "F")):
                raise DataError(f"{file}: expected 8 bits a channel, got Pillow mode {picture.mode!r}.")
            grey = picture.mode in ("1", "L", "LA")
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("L" if grey else "RGB")
    except DataError:
        raise
    except Exception as error:  # a decoder of damaged bytes raises what its code runs into
        if _refused(error):
            raise unreadable(file, error) from error
        raise DataError(
            f"{file}: expected an image that Pillow can read, got one that is damaged or no image "
            f"({type(error).__name__}: {' '.join(str(error).split()).rstrip('.')})."
        ) from error


def _resized(picture: Any, height: int, width: int) -> Any:
    from PIL import Image

    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.BOX)  # BOX: the mean of what a pixel covers


def _h_by_w(picture) -> str:
    return f"{picture.height}×{picture.width} (height × width)"


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Without a decoder's warnings of what it passes over: for what it cannot read, it raises an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _refused(error: Exception) -> bool:
    """Was it the system that refused the file, not a decoder its content, or an offset that the content tells (EINVAL)?"""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
