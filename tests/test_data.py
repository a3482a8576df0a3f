"""Data sets and batches: what is loaded, what is refused and in which words, and that a batch is a pure function."""

import ast
import gzip
import json
import pickle
import struct
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchgen import data, metrics, text
from scratchgen.data import (
    DataError,
    Images,
    Points,
    Task,
    Text,
    Tokens,
    batches,
    catalogue,
    load,
    mixture,
    mixture_modes,
    named,
    windows,
)
from scratchgen.text import CharTokenizer


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A machine with no data sets, no system packages and no network."""

    def retrieve(*_args, **_kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("SCRATCHGEN_DATA", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fashion = named.IDX["fashion-mnist"]
    monkeypatch.setitem(named.IDX, "fashion-mnist", fashion._replace(package=(tmp_path / "system", fashion.package[1])))
    monkeypatch.setitem(sys.modules, "pooch", SimpleNamespace(retrieve=retrieve))
    return tmp_path


def idx(array, *, ndim=None):
    head = bytes((0, 0, 8, array.ndim if ndim is None else ndim))
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, *, n=7, prefix="train", zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
    x[0, 0, :2] = 0, 255
    for stem, array in (("images-idx3-ubyte", x), ("labels-idx1-ubyte", y)):
        raw = idx(array)
        (folder / f"{prefix}-{stem}{'.gz' if zipped else ''}").write_bytes(gzip.compress(raw) if zipped else raw)
    return x, y


def write_png(path, array):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


# ---------------------------------------------------------------------------------------------------------- imports


def test_imports_at_the_top_are_the_standard_library_and_numpy():
    for package in (data, text, metrics):
        top, itself = Path(package.__file__), package.__name__
        for file in top.parent.glob("*.py") if top.name == "__init__.py" else [top]:
            imports = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.Import)]
            names = {alias.name.split(".")[0] for node in imports for alias in node.names}
            froms = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
            names |= {node.module.split(".")[0] for node in froms if not node.module.startswith(itself)}
            assert names <= set(sys.stdlib_module_names) | {"numpy"}, file


# ----------------------------------------------------------------------------------------------------------- Images


def ok(n=4, c=1, h=2, w=3):
    return np.linspace(0, 1, n * c * h * w, dtype=np.float32).reshape(n, c, h, w)


def test_images_know_their_length_and_shape():
    images = Images(ok(), np.array([0, 1, 1, 0]), ("a", "b"))
    assert len(images) == 4 and images.shape == (1, 2, 3)


def bad_pixel(value):
    x = ok()
    x[2, 0, 1, 1] = value
    return x


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ((ok().astype(np.float64),), r"x must be a float32 array of shape \(N, C, H, W\), got float64"),
        ((ok()[0],), r"got float32 \(1, 2, 3\)"),
        (([[0.0]],), "got list"),
        ((ok()[:0],), "x is empty"),
        ((ok()[..., :0],), "x is empty"),
        ((bad_pixel(np.nan),), "got NaN or infinity, first in image 2"),
        ((bad_pixel(np.inf),), "got NaN or infinity, first in image 2"),
        ((bad_pixel(-0.5),), r"pixels in \[0, 1\], got values from -0.5"),
        ((bad_pixel(255),), r"pixels in \[0, 1\], got values from 0.521739 to 255, first in image 2"),
        ((ok(), np.zeros(4, np.int32), ("a",)), r"y must be an int64 array of shape \(4,\), got int32"),
        ((ok(), np.zeros(3, np.int64), ("a",)), r"got int64 \(3,\)"),
        ((ok(), np.array([0, 0, 2, 1]), ("a", "b")), r"labels in \[0, 2\)"),
        ((ok(), np.array([0, 0, -1, 1]), ("a", "b")), "from -1 to 1"),
    ],
)
def test_images_refuse_what_they_are_not(fields, said):
    with pytest.raises(DataError, match=said):
        Images(*fields)


def test_text_refuses_nothing():
    assert len(Text("abc")) == 3
    with pytest.raises(DataError, match="empty"):
        Text("")


# --------------------------------------------------------------------------------------------------- named data sets


def test_digits_are_whole_and_split_without_overlap():
    from sklearn.datasets import load_digits

    train, test = load("digits"), load("digits", split="test")
    assert train.x.shape == (1438, 1, 8, 8) and test.x.shape == (359, 1, 8, 8)
    assert train.x.dtype == np.float32 and train.x.min() == 0 and train.x.max() == 1
    assert train.classes == tuple("0123456789") and set(train.y) == set(range(10))
    # Together they are the published set, each row once, with its own label.
    x, y = load_digits(return_X_y=True)
    rows = sorted(
        (*row, label)
        for part in (train, test)
        for row, label in zip((part.x * 16).reshape(-1, 64).tolist(), part.y.tolist(), strict=True)
    )
    assert rows == sorted((*row, label) for row, label in zip(x.tolist(), y.tolist(), strict=True))


def test_the_seed_makes_the_split():
    again, other = load("digits", split="test"), load("digits", split="test", seed=1)
    assert np.array_equal(load("digits", split="test").x, again.x)
    assert not np.array_equal(other.x, again.x)


def test_python_docs_are_cut_once():
    train, test = load("python-docs"), load("python-docs", split="test")
    whole = train.text + test.text
    assert 300_000 < len(whole) < 1_000_000 and "assert" in train.text
    assert abs(len(train) - 9 * len(test)) < 20
    assert load("python-docs", seed=3) == train


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["own", "cache/scratchgen", "system"])
def test_idx_files_are_found(alone, where, zipped):
    x, y = write_idx(alone / where / ("" if where == "system" else "fashion-mnist"), zipped=zipped)
    images = load("fashion-mnist")
    assert images.x.shape == (7, 1, 28, 28) and images.classes[9] == "Ankle boot"
    assert np.array_equal(images.x[:, 0], x.astype(np.float32) / np.float32(255)) and np.array_equal(images.y, y)
    assert images.x.min() == 0 and images.x.max() == 1


def test_own_folder_comes_before_the_cache_and_mnist_test_is_t10k(alone):
    write_idx(alone / "cache/scratchgen/mnist", n=3, prefix="t10k")
    assert len(load("mnist", split="test")) == 3
    write_idx(alone / "own/mnist", n=4, prefix="t10k")
    assert len(load("mnist", split="test")) == 4


def test_offline_error_names_all_three_ways(alone):
    with pytest.raises(DataError) as caught:
        load("fashion-mnist")
    for way in (
        "$SCRATCHGEN_DATA/fashion-mnist/",
        str(alone / "cache/scratchgen/fashion-mnist"),
        "dataset-fashion-mnist",
        "network",
        "no route to host",
    ):
        assert way in str(caught.value)
    with pytest.raises(DataError, match="train-images-idx3-ubyte") as caught:
        load("mnist")
    assert "system package" not in str(caught.value)


def test_download_is_asked_for_once_by_name_and_checksum(alone, monkeypatch):
    asked = []

    def retrieve(url, *, known_hash, fname, path):
        asked.append((url, known_hash))
        write_idx(Path(path))
        return str(Path(path) / fname)

    monkeypatch.setitem(sys.modules, "pooch", SimpleNamespace(retrieve=retrieve))
    assert len(load("mnist")) == len(load("mnist")) == 7
    assert [(url.rsplit("/")[-1], md5) for url, md5 in asked] == [
        ("train-images-idx3-ubyte.gz", "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873")
    ]
    assert asked[0][0].startswith("https://")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "got nothing"),
        (b"\x00\x00\x0d\x03" + bytes(12), "begins with the bytes 00 00 08 03, got 00 00 0d 03"),
        (idx(np.zeros((2, 28, 28)))[:-1], r"announces shape \(2, 28, 28\), so 1584 bytes were expected, got 1583"),
        (idx(np.zeros((2, 28, 28)))[:9], "announces shape"),
        (idx(np.zeros((0, 28, 28))), "x is empty"),
        (idx(np.zeros((3, 28, 28))), r"y must be an int64 array of shape \(3,\)"),
    ],
)
def test_damaged_idx_files(alone, raw, said):
    write_idx(alone / "own/mnist", zipped=False)
    (alone / "own/mnist/train-images-idx3-ubyte").write_bytes(raw)
    with pytest.raises(DataError, match=said):
        load("mnist")


def test_damaged_gzip(alone):
    write_idx(alone / "own/mnist")
    file = alone / "own/mnist/train-images-idx3-ubyte.gz"
    for damaged in (file.read_bytes()[:-20], b"not gzip at all"):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="whole gzip file"):
            load("mnist")


def test_catalogue_tells_what_is_here(alone):
    before = {row.name: row for row in catalogue()}
    made = ["grid-25", "ring-8"]
    assert list(before) == [
        "digits",
        "fashion-mnist",
        "fashion-edges",
        "mnist",
        "python-docs",
        "shapes",
        "shapes-outlines",
        *made,
    ]
    assert all(row.what and row.licence for row in before.values())
    assert before["digits"].where and before["python-docs"].where and before["mnist"].where is None
    write_idx(alone / "own/mnist")
    assert {row.name: row.where for row in catalogue()}["mnist"] is None  # the test half is still missing
    write_idx(alone / "own/mnist", prefix="t10k")
    assert {row.name: row.where for row in catalogue()}["mnist"] == str(alone / "own/mnist")


@pytest.mark.skipif({row.name: row.where for row in catalogue()}["fashion-mnist"] is None, reason="not on this machine")
def test_the_real_fashion_mnist():
    images = load("fashion-mnist")
    assert images.x.shape == (60000, 1, 28, 28) and np.array_equal(np.bincount(images.y), [6000] * 10)


# --------------------------------------------------------------------------------------------------- your own files


def test_text_file_and_folder(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + "ä0123456\r\n8".encode())
    assert load(tmp_path / "a.txt").text + load(tmp_path / "a.txt", split="test").text == "ä0123456\n8"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.txt").write_text("second", encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("never", encoding="utf-8")
    text = load(tmp_path)
    assert text.text + load(str(tmp_path), split="test").text == "ä0123456\n8\n\nsecond" and text.name == tmp_path.name


def test_folder_that_brings_its_own_split(tmp_path):
    for half in ("train", "test"):
        (tmp_path / half).mkdir()
        (tmp_path / half / "t.txt").write_text(half, encoding="utf-8")
    assert load(tmp_path).text == "train" and load(tmp_path, split="test").text == "test"


@pytest.mark.parametrize(
    ("raw", "split", "said"),
    [
        (b"abc\xff", "train", "expected UTF-8 text, got the byte 0xff at offset 3"),
        (b"", "train", "at least 1 characters for a train split, got 0"),
        (b"short", "test", "at least 10 characters for a test split, got 5"),
    ],
)
def test_bad_text(tmp_path, raw, split, said):
    (tmp_path / "a.txt").write_bytes(raw)
    for path in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(DataError, match=said):
            load(path, split=split)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name_or_path": "digit"}, "did you mean 'digits'"),
        ({"name_or_path": "no/such/thing"}, "no data set and no file is called 'no/such/thing'; expected one of digits"),
        ({"name_or_path": "digits", "split": "valid"}, "expected 'train' or 'test', got 'valid'"),
        ({"name_or_path": "digits", "seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"name_or_path": "digits", "seed": 0.5}, "seed"),
        ({"name_or_path": "digits", "size": 4}, "only a folder of images can be resized"),
        ({"name_or_path": __file__}, "got a file ending in '.py'"),
    ],
)
def test_load_refuses(arguments, said):
    with pytest.raises(DataError, match=said):
        load(**arguments)


def test_image_folder_grey_without_labels(tmp_path):
    for i in range(10):
        write_png(tmp_path / f"{i}.png", np.full((3, 4), i))
    train, test = load(tmp_path), load(tmp_path, split="test")
    assert train.x.shape == (8, 1, 3, 4) and test.x.shape == (2, 1, 3, 4) and train.y is None and train.classes == ()
    seen = np.concatenate([train.x, test.x])[:, 0, 0, 0] * 255
    assert np.array_equal(np.sort(np.round(seen)), np.arange(10))


def test_image_folder_classes_and_colour(tmp_path):
    red = np.zeros((2, 2, 3)) + [255, 0, 0]
    write_png(tmp_path / "train/b/0.png", red)
    write_png(tmp_path / "train/a/0.png", np.full((2, 2), 51))
    write_png(tmp_path / "test/b/0.png", red)  # the test half lacks class a, and keeps b's number
    train, test = load(tmp_path), load(tmp_path, split="test")
    assert train.classes == test.classes == ("a", "b") and train.y.tolist() == [0, 1] and test.y.tolist() == [1]
    assert train.x.shape == (2, 3, 2, 2)
    assert np.allclose(train.x[0], 0.2) and train.x[1, :, 0, 0].tolist() == [1, 0, 0]


def test_transparency_is_white_and_resizing_averages(tmp_path):
    clear = np.zeros((4, 2, 4))
    clear[:, 1] = [0, 0, 0, 255]
    write_png(tmp_path / "0.png", clear)
    assert load(tmp_path).x[0, :, 0].tolist() == [[1, 0]] * 3
    small = load(tmp_path, size=(2, 1)).x
    assert small.shape == (1, 3, 2, 1) and np.allclose(small, 0.5, atol=1 / 255)
    assert load(tmp_path, size=3).x.shape == (1, 3, 3, 3)


def test_bad_image_folders(tmp_path):
    with pytest.raises(DataError, match="neither among its 0 files"):
        load(tmp_path)
    write_png(tmp_path / "a.png", np.zeros((2, 2)))
    with pytest.raises(DataError, match="at least 5 images for a test split, got 1"):
        load(tmp_path, split="test")
    with pytest.raises(DataError, match="size: expected a whole number of at least 1, got 0"):
        load(tmp_path, size=0)
    write_png(tmp_path / "b.png", np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"b\.png: expected 2×2 .* like a\.png, got 2×3"):
        load(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png: expected an image that Pillow can read"):
        load(tmp_path)
    from PIL import Image

    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="8 bits a channel"):
        load(tmp_path)
    write_png(tmp_path / "sub/c.png", np.zeros((2, 2)))
    with pytest.raises(DataError, match="either all in sub-folders"):
        load(tmp_path)
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")
    with pytest.raises(DataError, match="got 1 and 3 of them"):
        load(tmp_path)


def test_npz(tmp_path):
    x, y = np.arange(10 * 6, dtype=np.uint8).reshape(10, 2, 3), np.arange(10, dtype=np.uint8) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y)
    train, test = load(tmp_path / "a.npz"), load(tmp_path / "a.npz", split="test")
    assert train.x.shape == (8, 1, 2, 3) and len(test) == 2 and train.classes == ("0", "1", "2")
    for part in (train, test):  # each picture kept its label
        assert np.array_equal(np.round(part.x[:, 0, 0, 0] * 255) // 6 % 3, part.y)
    np.savez(
        tmp_path / "b.npz",
        x_train=np.zeros((2, 3, 4, 4)),
        x_test=np.ones((1, 3, 4, 4)),
        y_train=np.array([0, 4]),
        y_test=np.array([1]),
    )
    train, test = load(tmp_path / "b.npz"), load(tmp_path / "b.npz", split="test")
    assert train.x.max() == 0 and test.x.min() == 1 and len(train.classes) == len(test.classes) == 5


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"pictures": np.zeros((6, 2, 2))}, r"expected an array called 'x', and optionally 'y', got \['pictures'\]"),
        ({}, "got no arrays"),
        ({"x": np.zeros((6, 2, 2), np.int64)}, "expected pixels as uint8 .* or as floats"),
        ({"x": np.zeros((6, 3))}, r"expected shape \(N, C, H, W\) or \(N, H, W\), got \(6, 3\)"),
        ({"x": np.zeros((6, 8, 8, 3))}, "channels come last"),
        ({"x": np.zeros((0, 2, 2))}, "at least 1 images"),
        ({"x": np.full((6, 2, 2), np.nan)}, "NaN"),
        ({"x": np.full((6, 2, 2), 1e300)}, "infinity"),
        ({"x": np.full((6, 2, 2), 255.0)}, r"pixels in \[0, 1\]"),
        ({"x": np.zeros((6, 2, 2)), "y": np.zeros(5, int)}, r"y must be integers of shape \(6,\), got int64 \(5,\)"),
        ({"x": np.zeros((6, 2, 2)), "y": np.zeros(6)}, "y must be integers"),
        ({"x": np.zeros((6, 2, 2)), "y": np.full(6, -1)}, r"labels in \[0, 0\)"),
        ({"x": np.zeros((6, 2, 2)), "y": np.full(6, 10**9)}, "classes numbered from 0 and below 65536"),
    ],
)
def test_bad_npz(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=said):
        load(tmp_path / "a.npz")


def test_npz_never_unpickles(tmp_path):
    class Loud:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    objects = np.array([Loud()], dtype=object)
    np.savez(tmp_path / "a.npz", x=objects)
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Loud()))
    np.save(tmp_path / "c.npy", np.zeros(3))
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    (tmp_path / "d.npz").write_bytes(b"")
    (tmp_path / "e.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:40])
    for name in "abcde":
        with pytest.raises(DataError, match="plain numeric arrays") as caught:
            load(tmp_path / f"{name}.npz")
        assert "allow_pickle" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- batches


@settings(derandomize=True, max_examples=40, deadline=None)
@given(n=st.integers(1, 20), b=st.integers(1, 20), seed=st.integers(0, 2**40), start=st.integers(0, 50))
def test_batches_resume_anywhere(n, b, seed, start):
    b = min(b, n)
    x = np.arange(n)
    whole = [rows for rows, _ in islice(batches(x, b, seed=seed), start + 5)]
    resumed = [rows for rows, _ in islice(batches(x, b, seed=seed, start=start), 5)]
    assert np.array_equal(whole[start:], resumed)


def test_an_epoch_sees_each_row_once_and_epochs_differ():
    images = Images(ok(n=12), np.arange(12), tuple("abcdefghijkl"))
    run = list(islice(batches(images, 4, seed=3), 6))
    epochs = [np.concatenate([y for _, y in run[i : i + 3]]) for i in (0, 3)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(12))
    assert not np.array_equal(*epochs)
    assert all(np.array_equal(x, images.x[y]) for x, y in run)
    # The rule in the docstring, word for word.
    order = np.random.default_rng((3, 1)).permutation(12)
    assert np.array_equal(run[4][1], order[4:8])


def test_far_resumption_is_immediate_and_batches_are_copies():
    x = np.zeros((5, 2))
    batch, y = next(batches(x, 5, seed=0, start=10**15))
    batch += 1
    assert y is None and x.max() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 6}, "batch_size: expected at most 5, the number of rows, got 6"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"batch_size": 2, "seed": -1}, "seed"),
        ({"batch_size": 2, "start": -1}, "start"),
        ({"data": np.float32(3), "batch_size": 1}, "got a single number"),
    ],
)
def test_batches_refuse_at_the_call(arguments, said):
    with pytest.raises(DataError, match=said):
        batches(**{"data": np.zeros(5), "seed": 0, **arguments})


@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
def test_windows_are_shifted_by_one_and_depend_on_seed_and_step_only(dtype):
    tokens = np.arange(1000, 1050).astype(dtype)
    x, y = windows(tokens, 8, 16, seed=1, step=9)
    assert x.shape == y.shape == (16, 8) and x.dtype == y.dtype == np.int64
    assert np.array_equal(x + 1, y) and np.array_equal(np.diff(x, axis=1), np.ones((16, 7)))
    assert np.array_equal(windows(tokens, 8, 16, seed=1, step=9)[0], x)
    assert not np.array_equal(windows(tokens, 8, 16, seed=1, step=10)[0], x)
    assert not np.array_equal(windows(tokens, 8, 16, seed=2, step=9)[0], x)
    assert not np.shares_memory(x, y)


def test_every_window_occurs_and_none_reaches_beyond():
    x, y = windows(np.arange(6), 3, 400, seed=0, step=0)
    assert set(x[:, 0]) == {0, 1, 2} and y.max() == 5
    assert windows(np.arange(4), 3, 2, seed=0, step=0)[1].tolist() == [[1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tokens": np.arange(3)}, r"at least block_size \+ 1 = 4 of them, got 3"),
        ({"tokens": np.zeros(9)}, "expected integers"),
        ({"tokens": np.zeros((3, 9), int)}, r"got int64 \(3, 9\)"),
        ({"block_size": 0}, "block_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"step": -1}, "step"),
        ({"seed": None}, "seed"),
    ],
)
def test_windows_refuse(arguments, said):
    with pytest.raises(DataError, match=said):
        windows(**{"tokens": np.arange(9), "block_size": 3, "batch_size": 2, "seed": 0, "step": 0, **arguments})


# -------------------------------------------------------------------------------------------------- data sets and tasks


def pictures(n=10, first=0):
    numbers = np.arange(first, first + n)
    return Images((numbers / 16).astype(np.float32).repeat(4).reshape(n, 1, 2, 2), numbers % 3, tuple("abc"))


def tokens(n=23, characters="ab"):
    return Tokens(np.arange(n), CharTokenizer(characters), block_size=4)


def firsts(batches):
    return [x.reshape(len(x), -1)[:, 0].tolist() for x, _ in batches]


def test_pictures_in_order_are_all_of_them_or_spread_evenly():
    x = pictures().x[:, 0, 0, 0].tolist()
    assert firsts(pictures().in_order(4)) == [x[:4], x[4:8], x[8:]]
    assert firsts(pictures().in_order(2, limit=2)) == [[x[0], x[2]], [x[5], x[7]]]
    assert firsts(pictures().in_order(4, limit=9)) == [x[:4], x[4:8], x[8:]]
    assert next(Images(ok()).in_order(3))[1] is None and next(pictures().in_order(3))[1].tolist() == [0, 1, 2]


def test_tokens_in_order_are_full_batches_of_windows():
    x, y = zip(*tokens().in_order(2), strict=True)  # 22 tokens that have a next one make 5 windows of 4, and so 2 batches of 2
    assert [rows.tolist() for rows in x] == [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11], [12, 13, 14, 15]]]
    assert all(np.array_equal(after, before + 1) for before, after in zip(x, y, strict=True))
    assert firsts(tokens().in_order(1, limit=2)) == [[0], [8]]
    assert firsts(tokens(3).in_order(5)) == [[0]], "a text shorter than a window is one shorter window"


@pytest.mark.parametrize("data", [pictures(), tokens()], ids=["pictures", "tokens"])
def test_a_task_begins_at_any_step(data):
    task = Task(data, data, batch_size=3, seed=5)
    for (x, _), (again, _) in zip(islice(task.batches(), 4, 7), task.batches(4), strict=False):
        assert np.array_equal(x, again)
    assert firsts(task.held_out(1)) == firsts(data.in_order(3, 1)) and task.train.about.startswith(f"{len(data)} ")


def test_checksums_tell_data_apart():
    kinds = [pictures(), pictures(9), pictures(first=1), Images(pictures().x), tokens(), tokens(22), tokens(characters="bc")]
    sums = [Task(data, data, 1).checksums["learned from"] for data in kinds]
    assert len(set(sums)) == len(sums)
    assert Task(pictures(), tokens(), 1).checksums == {"learned from": sums[0], "held out": sums[4]}


def test_metadata_are_json():
    for examples in (pictures(), tokens(), Images(ok())):
        assert json.loads(json.dumps(examples.metadata())) == examples.metadata()
    assert pictures().metadata() == {"classes": ["a", "b", "c"]} and tokens().metadata()["tokenizer"]["characters"] == "ab"


# ----------------------------------------------------------------------------------------------------------- points


def test_points_are_dealt_out_and_tell_of_themselves():
    x = np.arange(22, dtype=np.float32).reshape(11, 2)
    points = Points(x, name="line")
    seen = np.concatenate([batch for batch, _ in islice(points.batches(4, seed=0), 2)])
    assert seen.shape == (8, 2) and len(np.unique(seen[:, 0])) == 8, "without replacement"
    assert np.array_equal(np.concatenate([batch for batch, _ in points.in_order(4)]), x)
    assert [len(batch) for batch, none in points.in_order(4, 2) if none is None] == [4, 4]
    assert (len(points), points.about) == (11, "11 points of the plane")
    assert repr(points) == "Points(name='line', 11 points of the plane)"
    told = points.metadata()
    assert json.loads(json.dumps(told)) == told and told["square"] == [10, 11, pytest.approx(11)] and told["centres"] is None
    modes = load("grid-25", split="test")
    assert len(modes) == 10_000 and len(modes.metadata()["centres"]) == 25 and modes.metadata()["sigma"] == 0.05


def test_a_mixture_has_other_points_in_each_split_and_for_each_seed():
    firsts = {load("ring-8", split=split, seed=seed).x[0].tobytes() for split in ("train", "test") for seed in (0, 1)}
    assert len(firsts) == 4 and len(load("ring-8")) == 50_000
    assert np.array_equal(load("ring-8", seed=3).x, load("ring-8", seed=3).x)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Points(np.zeros((3, 2))), "x must be a float32 array of shape .N, 2. with N ≥ 1, got float64"),
        (lambda: Points(np.zeros((3, 3), np.float32)), "got float32 .3, 3."),
        (lambda: Points(np.zeros((0, 2), np.float32)), "got float32 .0, 2."),
        (lambda: Points(np.array([[0, 0], [0, np.nan]], np.float32)), "NaN or infinity, first in row 1 of x"),
        (lambda: Points(np.zeros((3, 2), np.float32), np.zeros((1, 2)), 1.0), "centres must be a float32 array"),
        (lambda: Points(np.zeros((3, 2), np.float32), np.zeros((1, 2), np.float32)), "sigma must be positive"),
    ],
)
def test_points_refuse(made, said):
    with pytest.raises(DataError, match=said):
        made()


def test_points_of_ones_own_are_read_from_an_archive(tmp_path):
    x = np.random.default_rng(0).normal(1000, 2, (50, 2))
    np.savez(tmp_path / "own.npz", x=x)
    train, test = (load(tmp_path / "own.npz", split=split) for split in ("train", "test"))
    assert (type(train), len(train), len(test), train.name) == (Points, 40, 10, "own")
    both = np.concatenate([train.x, test.x])
    assert np.array_equal(both[np.argsort(both[:, 0])], np.float32(x)[np.argsort(np.float32(x)[:, 0])])
    np.savez(tmp_path / "parts.npz", x_train=x[:30], x_test=x[30:])
    assert np.array_equal(load(tmp_path / "parts.npz", split="test").x, np.float32(x[30:]))
    np.savez(tmp_path / "far.npz", x=np.full((10, 2), 1e300))
    with pytest.raises(DataError, match="far: expected finite points"):
        load(tmp_path / "far.npz")


# --------------------------------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize(("name", "modes"), [("ring-8", 8), ("grid-25", 25)])
def test_mixture_is_what_it_says(name, modes):
    centres, sigma = mixture_modes(name)
    assert centres.shape == (modes, 2) and centres.dtype == np.float32
    assert np.allclose(centres.mean(axis=0), 0, atol=1e-6)
    x, k = mixture(name, 200 * modes, seed=0)
    assert x.dtype == np.float32 and x.shape == (200 * modes, 2) and k.dtype == np.int64
    noise = (x - centres[k]) / sigma  # N(0, I), to five standard errors
    n = noise.size
    assert abs(noise.mean()) < 5 / np.sqrt(n) and abs(noise.var() - 1) < 5 * np.sqrt(2 / n)
    assert np.abs(np.bincount(k, minlength=modes) - 200).max() < 5 * np.sqrt(200)
    assert np.array_equal(mixture(name, 10, seed=4)[0], mixture(name, 10, seed=4)[0])
    assert mixture(name, 0, seed=0)[0].shape == (0, 2)


def test_mixture_refuses():
    with pytest.raises(DataError, match="expected 'ring-8' or 'grid-25', got 'moons'"):
        mixture("moons", 5, seed=0)
    with pytest.raises(DataError, match="n: expected"):
        mixture("ring-8", -1, seed=0)
    with pytest.raises(DataError, match="seed"):
        mixture("ring-8", 1, seed=-1)
