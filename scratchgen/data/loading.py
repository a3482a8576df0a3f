"""`load`: a split of any data set, by its name or its path."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from scratchgen.data import files
from scratchgen.data.checks import DataError, require_natural
from scratchgen.data.dataset import Dataset
from scratchgen.data.images import Images
from scratchgen.data.named import NAMED, expanded
from scratchgen.data.pairs import Pairs, load_pairs
from scratchgen.data.points import Points
from scratchgen.data.texts import Text, cut, read_text


def load(
    name_or_path: str | os.PathLike[str],
    *,
    split: str = "train",
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    kind: type = Dataset,
) -> Images | Text | Pairs | Points:
    """One split of a data set, by its name or by the path to your own.

    A name of `catalogue()`, or a path to

        a .txt file, or a folder of them      UTF-8; files in the order of their paths, a blank line between two
        a folder of images                    labels from sub-folders if there are any, or captions from a file
                                              captions.tsv of lines FILE, a tab, caption; `size` resizes to (H, W)
        a .npz file                           x: uint8 in 0..255 or floats in [0, 1], (N, C, H, W) or (N, H, W);
                                              optionally y: integers (N,); or x: numbers (N, 2), points of the plane

    A folder of images does not tell whether these are single ones or pairs: with `kind=Pairs` they are taken for pairs, each
    image holding a and b side by side, or those of two sub-folders, a and b, under equal names. Other data are what they are,
    whatever `kind` says.

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
    require_natural("seed", seed, 0)
    name, path = str(name_or_path), expanded(name_or_path)
    folder_of_images = False
    if name in NAMED:
        data = NAMED[name].load(split, seed)
    elif path.is_dir() and issubclass(kind, Pairs):
        data, folder_of_images = load_pairs(path, split, seed, size), True
    elif path.is_dir():
        data, folder_of_images = files.load_folder(path, split, seed, size)
    elif path.is_file() and path.suffix.lower() == ".txt":
        data = Text(cut(read_text(path), split, path), path.stem)
    elif path.is_file() and path.suffix.lower() == ".npz":
        data = files.load_npz(path, split, seed)
    elif path.exists():
        raise DataError(f"{path}: expected a .txt file, a .npz file or a folder, got a file ending in {path.suffix!r}.")
    else:
        near = "".join(f" (did you mean {guess!r}?)" for guess in difflib.get_close_matches(name, NAMED, n=1))
        raise DataError(
            f"no data set and no file is called {name!r}{near}; expected one of {', '.join(NAMED)}, "
            f"or the path of a .txt file, a .npz file or a folder."
        )
    if size is not None and not folder_of_images:
        raise DataError(f"size: only a folder of images can be resized, got size={size!r} for {name!r}.")
    return data


def reads(name_or_path: str | os.PathLike[str], file: Path) -> bool:
    """Would `load` take what is written to `file` for a part of this data set? Raises DataError as `load` does."""
    top, file = expanded(name_or_path), file.resolve()
    if str(name_or_path) in NAMED or not top.is_dir():
        return False
    folders = ((top / folder).resolve() for folder in files.tree(top)[0])
    return any(
        file.is_relative_to(folder) and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        for folder in folders
    )
