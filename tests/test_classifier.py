"""The classifier that scores are taken by: what it learns, what decides its bits, and where it is kept."""

from pathlib import Path

import numpy as np
import pytest

from scratchgen import data, random
from scratchgen.models.classifier import Classifier, ClassifierConfig, trained
from scratchgen.models.family import anew
from scratchgen.tensors import Tensor
from scratchgen.training import kept
from scratchgen.training.kept import folder  # as it is outside of the tests

SMALL = {"width": 8, "features": 16, "batch_size": 16, "rounds": 2}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture
def few(digits):
    return ClassifierConfig(digits.shape, **SMALL), digits.x[:100], digits.y[:100]


def bits(classifier):
    return {name: tensor.numpy().tobytes() for name, tensor in classifier.state_dict().items()}


# ---------------------------------------------------------------------------------------------------------------------
# What it learns
# ---------------------------------------------------------------------------------------------------------------------


def test_it_reads_digits_and_tells_how_often_it_is_right(digits):
    found = trained(ClassifierConfig(digits.shape), digits.x, digits.y)
    test = data.load("digits", split="test")
    features, labels = found.read(test.x)
    right = (labels[:, 0] == test.y).mean()
    assert features.shape == (len(test), 128) and (features >= 0).all() and right > 0.95
    assert found.accuracy.numpy()[0] == pytest.approx(right, abs=0.04), "143 pictures it was not trained on tell the same"


def test_heads_answer_different_questions(digits):
    """Is the digit even; is it above 4; has the picture its colours turned over?"""
    turned = np.random.default_rng(0).integers(2, size=len(digits))
    x = np.where(turned[:, None, None, None], 1 - digits.x, digits.x)
    y = np.stack([digits.y % 2, digits.y > 4, turned], 1).astype(np.int64)
    found = trained(ClassifierConfig(digits.shape, (2, 2, 2), rounds=15, width=8), x, y)
    assert (found.accuracy.numpy() > [0.8, 0.8, 0.97]).all()
    logits = found.logits(Tensor(x[:5]))
    assert [part.shape for part in logits] == [(5, 2)] * 3
    f, labels = found.read(x[:5])
    assert (np.stack([part.data.argmax(1) for part in logits], 1) == labels).all()
    assert np.allclose(found.features(Tensor(x[:5])).data, f)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (1, 28, 28), (3, 32, 32), (2, 1, 40)])
def test_pictures_of_any_sides(shape):
    classifier = Classifier(ClassifierConfig(shape, (3,), width=4, features=7)).eval()
    features, labels = classifier.read(np.zeros((2, *shape), np.float32))
    assert features.shape == (2, 7) and labels.shape == (2, 1)
    assert classifier.read(np.zeros((0, *shape), np.float32))[0].shape == (0, 7)


# ---------------------------------------------------------------------------------------------------------------------
# Its bits
# ---------------------------------------------------------------------------------------------------------------------


def test_the_same_pictures_make_the_same_classifier_and_leave_no_trace(few):
    random.manual_seed(5)
    before = random.get_rng_state()
    first = bits(trained(*few))
    assert random.get_rng_state() == before
    random.manual_seed(6)
    assert bits(trained(*few)) == first


def test_its_name_is_made_of_all_that_it_follows_from(few):
    config, x, y = few
    names = []

    def note(name, make):
        names.append(name)
        return bare

    bare = Classifier(config).state_dict()
    turned, moved = x.copy(), y.copy()
    turned[7, 0, 0, 0] += 1 / 16
    moved[3] = (moved[3] + 1) % 10
    for case in ((config, x, y), (config, turned, y), (config, x, moved), (config, x[:99], y[:99])):
        trained(*case, note)
    for change in ({"lr": 1e-3}, {"rounds": 3}, {"seed": 1}):
        trained(ClassifierConfig(config.shape, **{**SMALL, **change}), x, y, note)
    assert len(set(names)) == len(names)
    trained(config, x.copy(), y[:, None].astype(np.int32), note)
    assert names[-1] == names[0], "the same labels, whatever the shape and type of the array"


# ---------------------------------------------------------------------------------------------------------------------
# Where it is kept
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "folder", lambda: tmp_path / "cache" / "kept")
    return tmp_path / "cache" / "kept"


def test_it_is_trained_once(few, cache):
    said = []
    first = trained(*few, kept.keeping(said.append))
    (file,) = cache.iterdir()
    assert len(said) == 1 and said[0].startswith("a classifier is trained, once") and str(file) in said[0]

    def never(name, make):
        return kept.keeping(said.append)(name, lambda: pytest.fail("it is trained again"))

    assert bits(trained(*few, never)) == bits(first) == bits(trained(*few, anew)) and len(said) == 1


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), lambda raw: b""])
def test_a_damaged_file_is_made_anew(few, cache, damage):
    first = bits(trained(*few, kept.keeping(lambda text: None)))
    (file,) = cache.iterdir()
    raw = file.read_bytes()
    file.write_bytes(damage(raw))
    said = []
    assert bits(trained(*few, kept.keeping(said.append))) == first
    assert len(said) == 1 and "anew" in said[0] and str(file) in said[0] and "checksum" in said[0]
    assert file.read_bytes() == raw


def test_where_nothing_can_be_kept_it_is_trained_each_time_and_says_so(few, tmp_path, monkeypatch):
    said = []
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setattr(kept, "folder", lambda: tmp_path / "cache" / "kept")
    first = bits(trained(*few, kept.keeping(said.append)))
    assert len(said) == 2 and "cannot be kept" in said[1] and str(tmp_path) in said[1]
    monkeypatch.setattr(kept, "folder", lambda: None)
    assert bits(trained(*few, kept.keeping(said.append))) == first
    assert len(said) == 3 and "not kept, since neither XDG_CACHE_HOME nor HOME" in said[2]


def test_the_folder_is_in_the_cache_of_the_user(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert folder() == Path("/x/scratchgen/kept")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("scratchgen.data.named.expanded", Path)  # as for a user without a home: ~ stays
    assert folder() is None


# ---------------------------------------------------------------------------------------------------------------------
# What it refuses
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        ({"x": np.zeros((20, 1, 8, 9), np.float32)}, "at least 10 pictures of .1, 8, 8. with labels"),
        ({"x": np.zeros((9, 1, 8, 8), np.float32), "y": np.zeros(9, int)}, "at least 10 pictures"),
        ({"y": np.zeros(19, int)}, "at least 10 pictures"),
        ({"y": np.zeros((20, 2), int)}, "at least 10 pictures"),
        ({"y": np.full(20, 10)}, "labels from 0 to below .10,., got int64 up to .10."),
        ({"y": np.full(20, -1)}, "labels from 0"),
        ({"y": np.zeros(20)}, "labels from 0 .* got float64"),
    ],
)
def test_refusals(change, said):
    given = {"x": np.zeros((20, 1, 8, 8), np.float32), "y": np.zeros(20, int), **change}
    with pytest.raises(ValueError, match=said):
        trained(ClassifierConfig(**SMALL), **given)


def test_a_classifier_refuses_other_pictures_and_no_question():
    with pytest.raises(ValueError, match=r"expected pictures of shape \(1, 8, 8\), got \(1, 9, 9\)"):
        Classifier(ClassifierConfig()).read(np.zeros((2, 1, 9, 9), np.float32))
    for heads in ((), (1,), (3, 0)):
        with pytest.raises(ValueError, match="expected heads of at least 2 classes"):
            Classifier(ClassifierConfig(heads=heads))
