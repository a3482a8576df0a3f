"""Data of one's own: parts that a folder or an archive comes in, links, what cannot be read, and files that are damaged.

What is damaged is found by damaging: whole files of each format are cut, flipped and stretched at random, seeded, and each
either loads or is refused in one sentence. The deep run does so 50 times as often.
"""

import io
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scratchgen.data import DataError, load
from tests.strategies import DEEP


def png(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(path)


def values(images):
    return np.round(images.x[:, 0, 0, 0] * 255).astype(int).tolist()


# ------------------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("train", "val"),
        ("train", "valid"),
        ("train", "validation"),
        ("Train", "Test"),
        ("TRAIN", "Val"),
        ("training", "testing"),
        ("seg_train", "seg_test"),
        ("train-images", "test-images"),
        ("faces.train", "faces.val"),
    ],
)
def test_parts_of_a_folder_are_kept_apart(tmp_path, names):
    for i, name in enumerate(names):
        for label in "ab":
            png(tmp_path / "pictures" / name / label / "0.png", 10 * i + ord(label))
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "t.txt").write_text(name)
        (tmp_path / f"{name}.txt").write_text(name)
    train, test = load(tmp_path / "pictures"), load(tmp_path / "pictures", split="test")
    assert (values(train), values(test)) == ([97, 98], [107, 108])
    assert train.classes == test.classes == ("a", "b") and train.y.tolist() == test.y.tolist() == [0, 1]
    assert tuple(load(tmp_path / "texts", split=split).text for split in ("train", "test")) == names
    files = tmp_path / "files"
    files.mkdir()
    for name in names:
        (tmp_path / f"{name}.txt").rename(files / f"{name}.txt")
    assert tuple(load(files, split=split).text for split in ("train", "test")) == names


def test_of_three_parts_the_test_is_held_out_and_the_validation_left_out(tmp_path):
    for i, name in enumerate(("train", "val", "test")):
        png(tmp_path / name / "0.png", i)
    assert values(load(tmp_path)) == [0] and values(load(tmp_path, split="test")) == [2]


def test_a_class_may_be_called_as_a_part_is(tmp_path):
    for i, name in enumerate(("bus", "train", "plane", "test_pilot")):
        for j in range(5):
            png(tmp_path / name / f"{j}.png", i)
    assert load(tmp_path).classes == ("bus", "plane", "test_pilot", "train") and len(load(tmp_path, split="test")) == 4


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["train/0.png", "Train/0.png", "test/0.png"], "one part of each kind, got Train and train"),
        (["train/0.png", "val/0.png", "valid/0.png"], "one part of each kind, got val and valid"),
        (["train/0.png", "test/0.png", "cats/0.png"], "nothing to learn from beside test and train, got cats"),
        (["train/0.png", "test/0.png", "1.png"], "nothing to learn from beside test and train, got 1.png"),
        (["bottle/train/0.png", "bottle/test/0.png"], "parts at the top, and once, got test and train in .*bottle"),
        (["a_train/0.png", "a_test/0.png", "b_train/0.png", "b_test/0.png"], "parts at the top, and once"),
        (["train.txt", "valid.txt", "more.txt"], "nothing to learn from beside train.txt and valid.txt, got more.txt"),
        (["sub/train.txt", "sub/valid.txt"], "parts at the top"),
        (["train/0.png", "test/note.md"], "test: expected .txt files or images, got none"),
    ],
)
def test_parts_that_are_only_half_so(tmp_path, files, said):
    for name in files:
        if name.endswith(".png"):
            png(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("words")
    with pytest.raises(DataError, match=said):
        load(tmp_path, split="test")


def test_parts_of_an_archive(tmp_path):
    def archive(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return tmp_path / "a.npz"

    x, y = np.zeros((6, 2, 2)), np.arange(6)
    path = archive(x_train=x, y_train=y, x_val=x[:2] + 1, y_val=y[4:], x_other=x)
    assert len(load(path)) == 6 and load(path, split="test").x.min() == 1 and load(path, split="test").y.tolist() == [4, 5]
    path = archive(x_train=x, x_valid=x[:2], x_test=x[:3])
    assert len(load(path, split="test")) == 3
    doubled = {"x_train": x, "x_val": x, "x_valid": x}
    for arrays, said in (({"x": x, "x_val": x}, "got x and x_val"), (doubled, "x_val and x_valid")):
        with pytest.raises(DataError, match=said):
            load(archive(**arrays))
    with pytest.raises(DataError, match="expected an array called 'x_test'"):
        load(archive(x_train=x), split="test")


def test_the_number_of_the_picture_is_that_in_the_file(tmp_path):
    x = np.zeros((20, 2, 2))
    x[[7, 13], 1, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x)
    for split in ("train", "test"):
        with pytest.raises(DataError, match="a.npz: x: .*NaN or infinity, first in image 7"):
            load(tmp_path / "a.npz", split=split)
    x[[7, 13], 1, 1] = 0, 3
    np.savez(tmp_path / "a.npz", x_train=x[:13], x_test=x[13:])
    assert len(load(tmp_path / "a.npz")) == 13
    with pytest.raises(DataError, match="a.npz: x_test: .*values from 0 to 3, first in image 0"):
        load(tmp_path / "a.npz", split="test")


# ---------------------------------------------------------------------------------------- links, and what is unreadable


def test_links_to_folders_and_files_are_followed(tmp_path):
    for i in range(4):
        png(tmp_path / "far/cats" / f"{i}.png", i)
    png(tmp_path / "data/dogs/4.png", 4)
    (tmp_path / "data/cats").symlink_to(tmp_path / "far/cats")
    (tmp_path / "data/dogs/5.png").symlink_to(tmp_path / "far/cats/0.png")
    both = [load(tmp_path / "data", split=split) for split in ("train", "test")]
    assert both[0].classes == both[1].classes == ("cats", "dogs")
    assert sorted(values(both[0]) + values(both[1])) == [0, 0, 1, 2, 3, 4]
    for half in ("train", "test"):
        (tmp_path / "halves").mkdir(exist_ok=True)
        (tmp_path / "halves" / half).symlink_to(tmp_path / ("data" if half == "train" else "far"))
    assert len(load(tmp_path / "halves")) == 6 and len(load(tmp_path / "halves", split="test")) == 4


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nothing", r"cats: cannot be read \(No such file"),
        ("cats", "cats: cannot be read"),
        ("..", "leads? back|link back"),
    ],
)
def test_links_that_lead_nowhere(tmp_path, target, said):
    png(tmp_path / "data/dogs/0.png")
    (tmp_path / "data/cats").symlink_to(target)
    (tmp_path / "data/dogs/.hidden").symlink_to("nothing")
    with pytest.raises(DataError, match=said):
        load(tmp_path / "data")


def test_what_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    png(tmp_path / "data/cats/0.png")
    png(tmp_path / "data/dogs/1.png", 1)
    listed = os.listdir

    def locked(path):
        if Path(path).name == "cats":
            raise PermissionError(13, os.strerror(13), str(path))
        return listed(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", locked)  # for the superuser, no folder is unreadable
        with pytest.raises(DataError, match=r"cats: cannot be read \(Permission denied\)"):
            load(tmp_path / "data")
    os.mkfifo(tmp_path / "data/dogs/2.png")
    with pytest.raises(DataError, match=r"2.png: expected a file, got a device or a pipe"):
        load(tmp_path / "data")


# -------------------------------------------------------------------------------------------------- no home, odd paths


def test_without_a_home(monkeypatch):
    from scratchgen import data

    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it does for a user whom the system does not know
    for name in ("XDG_CACHE_HOME", "SCRATCHGEN_DATA"):
        monkeypatch.delenv(name, raising=False)
    assert {row.name for row in data.catalogue() if row.where} >= {"digits", "python-docs"}
    with pytest.raises(DataError, match="mnist: .* neither XDG_CACHE_HOME nor HOME is set"):
        load("mnist")
    with pytest.raises(DataError, match="no file is called '~/x'"):
        load("~/x")
    assert len(load("digits")) == 1438


def test_a_home_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("SCRATCHGEN_DATA", "~nobody-of-that-name/data")
    assert load("digits").x.shape[0] == 1438
    with pytest.raises(DataError, match="'~nobody-of-that-name/x'"):
        load("~nobody-of-that-name/x")


# ----------------------------------------------------------------------------------------------------------- damage


def pictures():
    """Whole files: every mode and format that differ in how they are read."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, 12 * 9).reshape(12, 9).astype(np.uint8)
    colour, grey, exif = Image.fromarray(noise), Image.fromarray(ramp), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"  # orientation, description
    saved = [(grey, kind, {"save_all": True, "append_images": [grey]}) for kind in ("GIF", "PNG")]
    saved += [(colour.quantize(7), "BMP", {}), (colour, "JPEG", {"progressive": True}), (grey, "JPEG", {"exif": exif})]
    for mode in ("RGB", "L", "P", "RGBA", "LA", "1"):
        picture = (colour if mode[0] in "RP" else grey).convert(mode)
        saved += [(picture, "PNG", {"exif": exif})]
        saved += [(picture, "GIF", {"transparency": 2})] if mode in "PL" else []
        saved += [(picture, "BMP", {}), (picture, "TGA", {})] if mode not in ("LA",) else []
        saved += [(picture, "JPEG", {}), (picture, "PPM", {})] if mode in ("RGB", "L") else []
        saved += [(picture, "WEBP", {})] if mode in ("RGB", "RGBA") else []
    return list(map(written, saved))


def written(one):
    picture, kind, options = one
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def archives():
    x, y = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8), np.arange(6)
    made = []
    for save in (np.savez, np.savez_compressed):
        for arrays in ({"x": x, "y": y}, {"x_train": x / 255, "x_test": x / 255, "y_train": y, "y_test": y}):
            file = io.BytesIO()
            save(file, **arrays)
            made.append(file.getvalue())
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file, inner = io.BytesIO(), io.BytesIO()
        np.save(inner, x)
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("x.npy", inner.getvalue())
        made.append(file.getvalue())
    return made


def damaged(raw, rng):
    """Up to three times: a bit flipped, a byte replaced, a part cut out or put in, the rest cut off, an extreme number."""
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(raw) if rng.random() < 0.5 else min(len(raw), 80)))  # headers as often as all the rest
        kind, some = rng.integers(6), int(rng.integers(1, 9))
        extreme = int(rng.choice([0, 1, 65535, 10**6, 2**31 - 1, 2**31, 2**32 - 1]))
        begin, end, new = [
            (at, at + 1, bytes([raw[at] ^ 1 << rng.integers(8)])),
            (at, at + 1, bytes([rng.choice([0, 1, 127, 128, 255])])),
            (at, at + some, b""),
            (at, at, rng.bytes(some)),
            (max(at, 1), len(raw), b""),
            (at, at + 4, extreme.to_bytes(4, str(rng.choice(["big", "little"])))),
        ][kind]
        raw[begin:end] = new
        raw = raw or bytearray(b"\0")
    return bytes(raw)


@pytest.mark.parametrize(("name", "whole", "times"), [("a.png", pictures, 400), ("a.npz", archives, 300)])
def test_damaged_files_load_or_get_a_sentence(name, whole, times, tmp_path):
    whole, rng, refused = whole(), np.random.default_rng(), 0
    if not DEEP:
        rng = np.random.default_rng(20)
    for raw in whole:
        (tmp_path / name).write_bytes(raw)
        load(tmp_path / name if name.endswith("npz") else tmp_path)
    for i in range(times * (50 if DEEP else 1)):
        raw = damaged(whole[i % len(whole)], rng)
        (tmp_path / name).write_bytes(raw)
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            try:
                load(tmp_path / name if name.endswith("npz") else tmp_path)
            except DataError as error:
                refused += 1
                assert str(error).startswith(str(tmp_path)) and "\n" not in str(error) and str(error).endswith("."), raw.hex()
            except BaseException as error:
                raise AssertionError(f"{type(error).__name__}: {error}, of {raw.hex()}") from error
        assert not remarks, raw.hex()
    assert refused > times // 3


def test_an_archive_larger_than_the_memory(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**4, 10**4)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(DataError, match=r"a\.npz: its arrays are larger than the memory"):
        load(tmp_path / "a.npz")
