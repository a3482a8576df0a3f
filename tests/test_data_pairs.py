"""Pairs of pictures: edges made of pictures, and folders of the user's own, whole and damaged."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from scratchgen import data
from scratchgen.data import DataError, Pairs, Task, load, pictures_like
from scratchgen.data.images import Images
from scratchgen.data.pairs import EDGE, edges, of_edges, of_outlines, sobel
from scratchgen.data.shapes import shapes


def write(path, array):
    """A PNG file of uint8 (h, w) or (h, w, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


def grey(value, h=2, w=2):
    return np.full((h, w), value)


def read(folder, split="train", **options):
    return load(folder, split=split, kind=Pairs, **options)


def values(pairs):
    """The first pixel of each a and b, in 0..255."""
    a, b = (np.round(255 * x[:, 0, 0, 0]).astype(int).tolist() for x in (pairs.a, pairs.b))
    return list(zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------------------ the kind


def some(n=6, a=(1, 4, 4), b=(3, 4, 4)):
    rng = np.random.default_rng(0)
    return Pairs(rng.random((n, *a), dtype=np.float32), rng.random((n, *b), dtype=np.float32), name="some")


def test_batches_are_rows_of_both():
    pairs = some()
    row_of = {x.tobytes(): i for i, x in enumerate(pairs.a)}
    seen = []
    for a, b in itertools.islice(pairs.batches(2, seed=3), 3):
        rows = [row_of[x.tobytes()] for x in a]
        assert np.array_equal(b, pairs.b[rows])
        seen += rows
    assert sorted(seen) == list(range(6)), "an epoch has each pair once"
    assert all(np.array_equal(x, y) for x, y in zip(next(pairs.batches(2, seed=3, start=2)), (a, b), strict=True))
    in_order = list(pairs.in_order(4))
    assert [len(a) for a, _ in in_order] == [4, 2] and np.array_equal(np.concatenate([b for _, b in in_order]), pairs.b)
    assert [np.flatnonzero((pairs.a == a[0]).all((1, 2, 3))).item() for a, _ in pairs.in_order(1, limit=2)] == [0, 3]


def test_pairs_tell_what_they_are():
    pairs = some()
    assert len(pairs) == 6 and pairs.about == "6 pairs of images, 1×4×4 to 3×4×4" and pairs.metadata() == {}
    assert repr(pairs) == "Pairs(name='some', 6 pairs of shapes (1, 4, 4) and (3, 4, 4))"
    turned = dataclasses.replace(pairs, kept=(pairs.a[:1], pairs.b[:1])).reversed()
    assert turned.a is pairs.b and turned.b is pairs.a and turned.metadata()["a"].shape == (1, 3, 4, 4)
    same = some()
    other = Pairs(same.a, same.b.copy())
    other.b[5, 2, 3, 3] = 0.5
    sums = [Task(x, x, 1).checksums["learned from"] for x in (pairs, same, other, turned)]
    assert sums[0] == sums[1] and len(set(sums)) == 3


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.zeros((2, 1, 3, 3)), np.zeros((2, 1, 3, 3), np.float32), "a must be a float32 array .*float64"),
        (np.zeros((2, 1, 3, 3), np.float32), np.zeros((2, 3, 3), np.float32), r"b must be .*\(N, C, H, W\)"),
        (np.zeros((0, 1, 3, 3), np.float32), np.zeros((0, 1, 3, 3), np.float32), "a must be"),
        (np.zeros((2, 1, 3, 3), np.float32), np.zeros((3, 1, 3, 3), np.float32), "as many b as a"),
        (np.zeros((2, 1, 3, 3), np.float32), np.zeros((2, 1, 3, 4), np.float32), "the same height and width"),
        (np.zeros((2, 1, 3, 3), np.float32), np.full((2, 1, 3, 3), 2, np.float32), "b: expected finite pixels in"),
        (np.full((2, 1, 3, 3), np.nan, np.float32), np.zeros((2, 1, 3, 3), np.float32), "a: expected finite pixels in"),
    ],
)
def test_pairs_refuse_what_they_are_not(a, b, said):
    with pytest.raises(DataError, match=said):
        Pairs(a, b)


# --------------------------------------------------------------------------------------------------------------- edges


def test_sobel_is_that_of_scipy():
    x = np.random.default_rng(1).random((3, 2, 7, 5))
    by_scipy = [np.hypot(ndimage.sobel(p, 0, mode="nearest"), ndimage.sobel(p, 1, mode="nearest")) for p in x.reshape(6, 7, 5)]
    np.testing.assert_allclose(sobel(x), np.reshape(by_scipy, x.shape) / 4, rtol=1e-12)


def test_the_scale_of_a_slope():
    """1 beside a step along an axis; of all 3 × 3 patches of black and white, √5/2 at most."""
    step = np.zeros((4, 6))
    step[:, 3:] = 1
    assert np.array_equal(sobel(step), np.tile([0.0, 0, 1, 1, 0, 0], (4, 1))) and np.array_equal(sobel(step.T), sobel(step).T)
    patches = np.array(list(itertools.product([0.0, 1.0], repeat=9))).reshape(-1, 3, 3)
    assert sobel(patches)[:, 1, 1].max() == pytest.approx(np.sqrt(5) / 2)


def test_edges_are_where_it_is_steep_in_the_mean_of_the_channels():
    x = np.zeros((2, 3, 6, 6), np.float32)
    x[0, :, :, 3:] = EDGE + 0.01
    x[1, 0, :, 3:] = 1  # a third in the mean, which is steep enough too
    drawn = edges(x)
    assert drawn.shape == (2, 1, 6, 6) and drawn.dtype == np.float32
    assert np.array_equal(drawn[0, 0], np.tile([0, 0, 1, 1, 0, 0], (6, 1))) and np.array_equal(drawn[0], drawn[1])
    assert not edges(x[:1] * ((EDGE - 0.01) / (EDGE + 0.01))).any()
    many = np.random.default_rng(0).random((4100, 1, 3, 3), dtype=np.float32)
    assert np.array_equal(edges(many)[4095:4098], edges(many[4095:4098])), "block by block as at once"


def test_the_named_pairs_are_made_of_the_named_pictures(monkeypatch):
    x = np.random.default_rng(0).random((9, 1, 28, 28), dtype=np.float32)
    y = np.arange(9) % 2
    monkeypatch.setattr(data.named, "_idx_images", lambda name: lambda split, seed: Images(x, y, ("a", "b"), name + split))
    pairs = load("fashion-edges", split="test")
    assert pairs.images().x is x and pairs.images().y is y and pairs.images().classes == ("a", "b")
    assert np.array_equal(pairs.b, x) and np.array_equal(pairs.a, edges(x)) and pairs.name == "fashion-edges"
    assert np.array_equal(of_edges(Images(x), "x").a, pairs.a)
    assert len(load("fashion-edges", kind=Images)) == 9, "what has a name is what it is"


def test_outlines_have_the_colour_of_their_shape_on_black_or_white_paper():
    made = shapes("test", 0, 40)
    pairs = of_outlines(made, "x")
    assert pairs.b is made.x and pairs.a.shape == (40, 3, 32, 32) and pairs.name == "x"
    ink, dark = made.outlines()[:, 0], made.scenes.ground.mean(1) < 0.5
    assert 10 < dark.sum() < 30
    for i in range(40):
        paper, full = pairs.a[i][:, ink[i] == 0], pairs.a[i][:, ink[i] == 1].T  # (3, ·), (·, 3)
        assert (paper == (0 if dark[i] else 1)).all(), "of the ground, no more is told than whether it is dark"
        np.testing.assert_allclose(full, np.tile(made.scenes.rgb[i, 0], (len(full), 1)), rtol=1e-6)
    assert (ink == 1).any((1, 2)).all()


# ------------------------------------------------------------------------------------------------------------- folders


def test_side_by_side(tmp_path):
    for i in range(10):
        write(tmp_path / f"{i}.png", np.concatenate([grey(i, 3, 4), grey(100 + i, 3, 4)], 1))
    train, test = read(tmp_path), read(tmp_path, "test")
    assert train.a.shape == (8, 1, 3, 4) and len(test) == 2 and train.name == tmp_path.name
    assert sorted(values(train) + values(test)) == [(i, 100 + i) for i in range(10)]
    assert values(read(tmp_path, seed=1)) != values(train), "the seed deals the pairs out"
    images = load(tmp_path)
    assert isinstance(images, Images) and images.x.shape == (8, 1, 3, 8), "without asking for pairs, these are single images"
    np.testing.assert_array_equal(np.concatenate([train.a, train.b], 3), images.x)


def test_two_folders_of_equal_names(tmp_path):
    for i in range(5):
        write(tmp_path / "Input" / "deep" / f"{i}.png", grey(i))
        write(tmp_path / "target" / "deep" / f"{i}.bmp", np.dstack([grey(200 + i)] * 3))
    (tmp_path / "target" / "notes.md").write_text("not an image")
    train, test = read(tmp_path), read(tmp_path, "test")
    assert train.a.shape == (4, 1, 2, 2) and train.b.shape == (4, 3, 2, 2)
    assert sorted(values(train) + values(test)) == [(i, 200 + i) for i in range(5)]


def test_parts_are_kept(tmp_path):
    for part, first in (("train", 0), ("test", 50)):
        for i in range(3):
            write(tmp_path / "two" / part / "a" / f"{i}.png", grey(first + i))
            write(tmp_path / "two" / part / "b" / f"{i}.png", grey(first + i + 100))
            write(tmp_path / "one" / part / f"{i}.png", np.concatenate([grey(first + i), grey(first + i + 100)], 1))
    for kind in ("one", "two"):
        assert values(read(tmp_path / kind)) == [(0, 100), (1, 101), (2, 102)]
        assert values(read(tmp_path / kind, "test")) == [(50, 150), (51, 151), (52, 152)]


def test_each_half_is_resized_and_no_pixel_crosses_the_middle(tmp_path):
    for i in range(5):
        write(tmp_path / "one" / f"{i}.png", np.concatenate([grey(0, 6, 10 + 2 * i), grey(255, 6, 10 + 2 * i)], 1))
        write(tmp_path / "two" / "a" / f"{i}.png", grey(0, 6, 5 + i))
        write(tmp_path / "two" / "b" / f"{i}.png", grey(255, 8, 4 + i))
    for folder in ("one", "two"):
        for size in (4, (3, 7)):
            pairs = read(tmp_path / folder, size=size)
            assert pairs.a.shape == (4, 1, *(size if isinstance(size, tuple) else (4, 4))) and pairs.b.shape == pairs.a.shape
            assert not pairs.a.any() and (pairs.b == 1).all()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"0.png": (2, 5)}, r"0\.png: expected two pictures of one size side by side, so an even width, got 2×5"),
        ({"0.png": (2, 4), "1.png": (2, 6)}, r"1\.png: expected 2×4 .* like 0\.png, got 2×6 .*size= resizes"),
        ({"a/0.png": (2, 2), "a/1.png": (2, 2), "b/0.png": (2, 2)}, r"a/1\.png: has no partner .* in b \(1 of 2 have none\)"),
        ({"a/0.png": (2, 2), "b/0.png": (2, 2), "b/x/0.png": (2, 2)}, r"b/x/0\.png: has no partner .* in a"),
        ({"a/0.png": (2, 2), "b/0.png": (2, 3)}, r"expected a and b of one size, got 2×2 .* in a and 2×3 in b"),
        (
            {"a/0.png": (2, 2), "a/0.bmp": (2, 2), "b/0.png": (2, 2)},
            r"a/0\.png: expected one image of each name, got 0\.bmp too",
        ),
        ({"cats/0.png": (2, 2), "dogs/0.png": (2, 2)}, "two sub-folders, a and b .*, got cats, dogs"),
        ({"a/0.png": (2, 2)}, "two sub-folders, a and b .*, got a"),
        ({"a/0.png": (2, 2), "input/0.png": (2, 2)}, "two sub-folders, a and b .*, got a, input"),
        ({"a/0.png": (2, 2), "b/0.png": (2, 2), "0.png": (2, 4)}, "two sub-folders, a and b .*, got a, b beside images"),
        ({"a/train/0.png": (2, 2), "a/test/0.png": (2, 2)}, "expected its parts at the top"),
        ({"train/0.png": (2, 2), "test/0.md": None}, "test: expected pairs of images, got no image"),
        ({"0.md": None}, "expected pairs of images, got no image"),
        ({"0.png": None}, r"0\.png: expected an image that Pillow can read, got one that is damaged"),
        ({"a/0.png": (2, 2), "b/0.png": None}, r"b/0\.png: expected an image that Pillow can read"),
    ],
)
def test_what_is_no_folder_of_pairs_gets_a_sentence(tmp_path, files, said):
    for name, size in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if size is None:
            path.write_bytes(b"no picture")
        else:
            write(path, grey(7, *size))
    with pytest.raises(DataError, match=said) as caught:
        for split in ("train", "test"):
            read(tmp_path, split)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_too_few_pairs_for_a_test(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.png", grey(i, 2, 4))
    assert len(read(tmp_path)) == 4
    with pytest.raises(DataError, match="at least 5 images for a test split, got 4"):
        read(tmp_path, "test")


# ---------------------------------------------------------------------------------------------- pictures to translate


def test_pictures_for_a_model(tmp_path):
    file = write(tmp_path / "p" / "1.png", np.dstack([grey(255, 8, 12), grey(0, 8, 12), grey(0, 8, 12)]))
    write(tmp_path / "p" / "2.png", grey(51, 16, 24))
    both = pictures_like(tmp_path / "p", (3, 4, 6))
    assert both.shape == (2, 3, 4, 6) and both.dtype == np.float32
    assert (both[0, 0] == 1).all() and not both[0, 1:].any() and np.allclose(both[1], 0.2)
    one = pictures_like(str(file), (1, 8, 12))
    assert one.shape == (1, 1, 8, 12) and np.allclose(one, 76 / 255), "red as grey: 0.299 of white"
    assert pictures_like(write(tmp_path / "q.png", grey(0, 281, 280)), (1, 28, 28)).shape == (1, 1, 28, 28)


def test_pictures_that_no_model_takes(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.png").write_bytes(b"no picture")
    for path, said in (
        (write(tmp_path / "wide.png", grey(0, 28, 29)), r"wide\.png: expected sides in the ratio of 28×28 .*, got 28×29"),
        (write(tmp_path / "small.png", grey(0, 9, 10)), r"small\.png: expected sides in the ratio of 28×28"),
        (tmp_path / "empty", "a folder without any"),
        (tmp_path / "none.png", r"none\.png: cannot be read \(No such file"),
        (tmp_path / "no.png", "damaged or no image"),
    ):
        with pytest.raises(DataError, match=said):
            pictures_like(path, (1, 28, 28))
