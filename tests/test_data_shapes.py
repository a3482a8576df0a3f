"""The shapes: captions mean what they say, pictures show what is asked, and what is held out never occurs in training."""

import itertools

import numpy as np
import pytest

from scratchgen import data
from scratchgen.data import Captioned, DataError
from scratchgen.data import shapes as S

ALL = np.array(list(itertools.product(range(2), range(6), range(6), range(9))))  # (648, 4)


@pytest.fixture(scope="module")
def train():
    return S.shapes("train", n=2000)


@pytest.fixture(scope="module")
def test():
    return S.shapes("test")


# ------------------------------------------------------------------------------------------------------------ captions


def test_what_is_said_is_what_is_read(train):
    rng = np.random.default_rng(0)
    open_ = rng.random(ALL.shape) < 0.4
    stated = np.where(open_ & ~open_.all(1, keepdims=True), -1, ALL)
    for row in stated:
        assert S.parse(S.say(row, rng)).tolist() == row.tolist()
    assert [S.parse(caption).tolist() for caption in train.captions] == train.stated.tolist()
    assert ((train.stated == -1) | (train.stated == train.attributes)).all(), "a caption is true of its picture"
    share = (train.stated >= 0).mean(0)
    assert np.abs(share - [0.75, 0.9, 0.95, 0.75]).max() < 0.03
    assert (train.stated >= 0).any(1).all()


def test_every_word_of_the_grammar_is_used_and_each_meaning_has_paraphrases(train):
    words = {word for caption in train.captions for word in caption.split()}
    known = {w for values in S.WORDS.values() for group in values.values() for words in group for w in words.split()}
    assert known < words
    one = np.array([0, 0, 0, 0])
    said = {S.say(one, np.random.default_rng(i)) for i in range(300)}
    assert len(said) > 50 and "a small red circle in the upper left" in said
    assert S.say(np.array([-1, 1, -1, -1]), np.random.default_rng(3)).endswith("an orange shape")


@pytest.mark.parametrize(
    ("caption", "means"),
    [
        ("a small red circle in the upper left", (0, 0, 0, 0)),
        ("at the bottom there is a huge violet plus", (1, 5, 4, 7)),
        ("A blue box in the middle right", (-1, 4, 1, 5)),
        ("a green shape", (-1, 3, -1, -1)),
        ("a picture of an orange hoop that is tiny in the centre", (0, 1, 5, 4)),
    ],
)
def test_captions_read_by_hand(caption, means):
    assert S.parse(caption).tolist() == list(means)


@pytest.mark.parametrize(
    ("caption", "said"), [("a pink circle", "'pink' is no word"), ("a red blue circle", "expected one colour")]
)
def test_captions_that_mean_nothing(caption, said):
    with pytest.raises(DataError, match=said):
        S.parse(caption)


# ------------------------------------------------------------------------------------------------------------ pictures


def test_areas_and_places_are_those_of_the_geometry():
    """Covered pixels sum to the area: coverage is exact on straight edges and off by O(1/r) on curved ones."""
    rng = np.random.default_rng(1)
    s = S.scenes(ALL[:, None], rng)
    cover = np.clip(0.5 - S.distances(s, 0), 0, 1)
    area = {
        "circle": np.pi,
        "square": 4 * 0.89**2,
        "triangle": 3 * np.sqrt(3) * 0.62**2,
        "diamond": 2 * 1.2**2,
        "cross": 8 * 1.1 * 0.38 - 4 * 0.38**2,
        "ring": np.pi * (1.05**2 - 0.55**2),
    }
    for value, name in enumerate(S.ATTRIBUTES["shape"]):
        rows = ALL[:, S.SHAPE] == value
        ratio = cover[rows].sum((1, 2)) / (area[name] * s.radius[rows, 0] ** 2)
        assert np.abs(ratio - 1).max() < 0.06 and abs(ratio.mean() - 1) < 0.02, name
    assert cover[:, [0, -1]].max() == cover[:, :, [0, -1]].max() == 0, "all of an object is in the picture"
    y, x = np.mgrid[:32, :32] + 0.5
    for axis, at in enumerate((x, y)):
        middle = (cover * at).sum((1, 2)) / cover.sum((1, 2))
        assert np.abs(middle - s.centre[:, 0, axis]).max() < 1.3  # a triangle's centroid lies beside its middle
        third = np.rint((middle - 16) / 6) + 1
        place = ALL[:, S.POSITION] % 3 if axis == 0 else ALL[:, S.POSITION] // 3
        assert (third == place).all()


def test_pixels_in_the_middle_have_the_asked_colour():
    s = S.scenes(ALL[:, None], np.random.default_rng(2))
    x, d = S.draw(s), S.distances(s, 0)
    assert x.dtype == np.float32 and x.shape == (648, 3, 32, 32) and x.min() >= 0 and x.max() <= 1
    for i in range(648):
        inside, outside = d[i] < -0.5, d[i] > 0.5
        assert np.abs(x[i][:, inside] - s.rgb[i, 0][:, None]).max() < 1e-6
        nearest = np.argmin(((s.rgb[i, 0] - S._RGB) ** 2).sum(1))
        assert nearest == ALL[i, S.COLOUR]
        assert np.abs(x[i][:, outside] - s.ground[i][:, None]).max() <= 0.1 + 1e-6


def test_later_objects_lie_over_earlier_ones_and_hide_their_outlines():
    both = np.array([[[1, 0, 1, 3], [1, 3, 0, 4]]])  # a green circle in the middle over a red square on the left
    two = S.scenes(both, np.random.default_rng(0))
    first, second = S.distances(two, 0)[0], S.distances(two, 1)[0]
    x, line = S.draw(two)[0], S.outline(two)[0, 0]
    on_top, below = second < -0.5, (first < -0.5) & (second > 0.5)
    assert on_top.sum() > 50 and below.sum() > 10
    assert np.abs(x[:, on_top] - two.rgb[0, 1][:, None]).max() < 1e-6
    assert np.abs(x[:, below] - two.rgb[0, 0][:, None]).max() < 1e-6
    assert line[second < -1.2].max() == 0, "an edge below is not seen"
    assert line[np.abs(second) < 0.1].min() == 1, "an edge on top is"


def test_outlines_are_where_the_pictures_change(test):
    x, lines = test.x[:200], test.outlines()[:200, 0]
    assert lines.shape == (200, 32, 32) and lines.dtype == np.float32 and lines.min() == 0 and lines.max() == 1
    d = S.distances(test.scenes[np.arange(200)], 0)
    assert lines[np.abs(d) > 1.1].max() == 0 and lines[np.abs(d) < 0.1].min() == 1
    step = np.abs(np.diff(x, axis=3)).max(1) > 0.2  # a jump from a pixel to the next
    assert np.maximum(lines[..., 1:], lines[..., :-1])[step].min() > 0.1


# ------------------------------------------------------------------------------------------------------------ the split


def test_held_out_combinations_never_occur_in_training_neither_drawn_nor_said(train, test):
    assert len(S.UNSEEN) == 6 and {c for c, _ in S.UNSEEN} == {s for _, s in S.UNSEEN} == set(range(6))
    assert not train.unseen.any() and not S.is_unseen(train.stated).any()
    drawn = {tuple(pair) for pair in train.attributes[:, [S.COLOUR, S.SHAPE]].tolist()}
    assert drawn == set(itertools.product(range(6), range(6))) - S.UNSEEN
    rows = np.arange(len(train))
    for seed in range(3):
        said = np.array([S.parse(caption) for caption in train.mismatched(rows, np.random.default_rng(seed))])
        assert not S.is_unseen(said).any()
    assert 0.12 < test.unseen.mean() < 0.21, "a sixth"
    assert {tuple(pair) for pair in test.attributes[:, [S.COLOUR, S.SHAPE]].tolist()} == set(
        itertools.product(range(6), range(6))
    )
    assert (S.is_unseen(ALL) == [(c, s) in S.UNSEEN for _, c, s, _ in ALL.tolist()]).all()


def test_wrong_captions_are_false_of_their_picture_in_what_they_state(train):
    rows = np.random.default_rng(0).permutation(len(train))
    wrong = np.array([S.parse(caption) for caption in train.mismatched(rows, np.random.default_rng(1))])
    stated = train.stated[rows]
    assert ((wrong >= 0) == (stated >= 0)).all(), "they speak of the same attributes"
    differ = ((wrong >= 0) & (wrong != train.attributes[rows])).sum(1)
    assert differ.min() == 1 and 0.4 < (differ == 1).mean() < 0.9
    changed = (wrong != stated)[(stated >= 0).all(1)].mean(0)
    assert (changed > 0.3).all(), "each attribute is changed often"


def test_equal_seeds_give_equal_data_and_splits_differ(train):
    again, other = S.shapes("train", n=2000), S.shapes("train", seed=1, n=2000)
    assert np.array_equal(again.x, train.x) and again.captions == train.captions
    assert not np.array_equal(other.x, train.x) and not np.array_equal(S.shapes("test", n=2000).attributes, train.attributes)
    assert len(train.scenes.radius) == 2000 and np.array_equal(S.draw(train.scenes[5:7]), train.x[5:7])
    one, two = (train.mismatched(np.arange(9), np.random.default_rng(4)) for _ in range(2))
    assert one == two


def test_loaded_by_name(test):
    loaded = data.load("shapes", split="test")
    assert isinstance(loaded, Captioned) and isinstance(loaded, data.Images) and loaded.values == S.ATTRIBUTES
    assert np.array_equal(loaded.x, test.x) and loaded.shape == (3, 32, 32)
    assert loaded.about == "2,000 images of 3×32×32 with captions" and "with captions" in repr(loaded)
    x, y = next(loaded.batches(8, seed=0))
    assert x.shape == (8, 3, 32, 32) and y is None, "any model of pictures can learn from them"
    assert loaded.metadata()["values"]["size"] == ["small", "large"]


@pytest.mark.parametrize(("arguments", "said"), [(("valid",), "'train', 'test' or 'reader'"), (("train", 0, 0), "at least 1")])
def test_refusals(arguments, said):
    with pytest.raises(DataError, match=said):
        S.shapes(*arguments)


# ----------------------------------------------------------------------------------------- captioned pictures of one's own


def _pictures(n):
    return np.zeros((n, 1, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"captions": ("a",)}, "a caption for each of 2 pictures, got 1"),
        ({"captions": ("a", " ")}, "got none for picture 1"),
        ({"attributes": np.zeros((2, 3), np.int64)}, r"attributes must be int64 of shape \(2, 1\)"),
        ({"attributes": np.array([[0], [2]])}, r"the attribute 'size' in \[0, 2\), got values from 0 to 2"),
    ],
)
def test_captioned_refuses(changes, said):
    good = {"captions": ("a", "b"), "attributes": np.array([[0], [1]]), "values": {"size": ("small", "large")}}
    Captioned(_pictures(2), **good)
    with pytest.raises(DataError, match=said):
        Captioned(_pictures(2), **{**good, **changes})


def test_a_mismatched_caption_says_something_else():
    own = Captioned(_pictures(5), captions=("a cat", "a cat", "a dog", "a cat", "a bird"))
    for seed in range(20):
        wrong = own.mismatched(np.arange(5), np.random.default_rng(seed))
        assert all(w in own.captions and w != c for w, c in zip(wrong, own.captions, strict=True))
    with pytest.raises(DataError, match="at least two different captions, got 'a cat'"):
        Captioned(_pictures(2), captions=("a cat", "a cat")).mismatched(np.arange(2), np.random.default_rng(0))
    assert [a.tobytes() for a in own.contents()] != [
        a.tobytes() for a in Captioned(_pictures(5), captions=("a cat",) * 5).contents()
    ]


def _folder(path, captions, n=10):
    from PIL import Image

    path.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (4, 4), (20 * i, 0, 0)).save(path / f"{i}.png")
    (path / "captions.tsv").write_text(captions, encoding="utf-8")
    return path


CAPTIONS = "".join(f"{i}.png\tpicture {i}, so red\n" for i in range(10))


def test_a_folder_with_captions(tmp_path):
    folder = _folder(tmp_path / "own", "\n" + CAPTIONS)
    train, held_out = data.load(folder), data.load(folder, split="test")
    assert isinstance(train, Captioned) and len(train) == 8 and len(held_out) == 2
    for part in (train, held_out):
        for x, caption in zip(part.x, part.captions, strict=True):
            assert caption == f"picture {round(float(x[0, 0, 0]) * 255 / 20)}, so red"
    parts = tmp_path / "parts"
    _folder(parts / "train", CAPTIONS)
    _folder(parts / "test", CAPTIONS.replace("\n", " indeed\n"))
    assert data.load(parts).captions[3] == "picture 3, so red" and len(data.load(parts)) == 10
    assert data.load(parts, split="test").captions[3] == "picture 3, so red indeed"


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        (CAPTIONS.replace("3.png\t", "3.png "), "a file, a tab and its caption, got '3.png picture 3, so red' in line 4"),
        (CAPTIONS + "3.png\tagain\n", "one caption for 3.png, got a second one in line 11"),
        (CAPTIONS + "x.png\tnone\n", "captions of pictures in that folder, got x.png"),
        (CAPTIONS.replace("3.png\tpicture 3, so red\n", ""), "a caption for each picture, got none for 3.png"),
        ("", "lines of a file, a tab and its caption, got none"),
    ],
)
def test_captions_that_do_not_fit_the_folder(tmp_path, captions, said):
    with pytest.raises(DataError, match=said):
        data.load(_folder(tmp_path / "own", captions))
