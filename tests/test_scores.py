"""Scores of samples beside real pictures: each moves its way when something is wrong, and says what it was taken by."""

import dataclasses
import functools

import numpy as np
import pytest

from scratchgen import data, random
from scratchgen.data import Images, Task
from scratchgen.models import flow, gan, pictures, vae, vqvae
from scratchgen.models.classifier import ClassifierConfig, trained
from scratchgen.models.family import anew, side_by_side
from scratchgen.tensors import Tensor


@pytest.fixture(scope="module")
def task():
    return Task(data.load("digits"), data.load("digits", split="test"), 64)


@pytest.fixture(scope="module")
def keep(task):
    """Keeps the classifier of this module's pictures."""
    kept = {}

    def keep(name, make):
        if name not in kept:
            kept[name] = make()
        return kept[name]

    return keep


def scored(task, draw, keep=anew, say=lambda text: None, scores=pictures.scores):
    return scores(task, {}, draw, np.random.default_rng(0), say, keep)


# ---------------------------------------------------------------------------------------------------------------------
# Each moves its way
# ---------------------------------------------------------------------------------------------------------------------


def blurred(x):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    n, m = x.shape[2:]
    return sum(padded[..., i : i + n, j : j + m] for i in range(3) for j in range(3)) / 9


def noisy(x, sigma):
    return np.clip(x + np.random.default_rng(1).normal(0, sigma, x.shape), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def found(task, keep):
    """Scores of real pictures that a model has never seen, and of what could be wrong with them."""
    rng = np.random.default_rng(3)
    order = rng.permutation(len(task.train))
    known, fresh = order[:1000], order[1000:]  # of the training pictures some are learned from, others stand for samples
    learned = Images(task.train.x[known], task.train.y[known], task.train.classes)
    x, y = task.train.x[fresh], task.train.y[fresh]
    samples = {
        "fresh": x,
        "shifted": pictures.shifted(x),
        "blurred": blurred(x),
        "without a class": x[y != 3],
        "half of the classes": x[y < 5],
        "remembered": learned.x,
        "few, repeated": x[:20],
        "a little noise": noisy(x, 0.1),
        "noise": noisy(x, 0.3),
    }
    judged = Task(learned, task.test, 64)
    draw = lambda made: lambda n, rng: np.resize(made[rng.permutation(len(made))], (n, 1, 8, 8))  # noqa: E731
    return {name: scored(judged, draw(made), keep) for name, made in samples.items()}


@pytest.mark.parametrize(
    "score, wrong, sign",
    [
        *(("frechet_distance", wrong, 1)
          for wrong in ("shifted", "blurred", "without a class", "half of the classes", "few, repeated", "noise")),
        *(("kernel_distance", wrong, 1) for wrong in ("shifted", "blurred", "noise")),
        *(("precision", wrong, -1) for wrong in ("shifted", "blurred", "noise")),
        *(("recall", wrong, -1) for wrong in ("shifted", "half of the classes", "few, repeated", "noise")),
        *(("density", wrong, -1) for wrong in ("shifted", "blurred", "noise")),
        *(("coverage", wrong, -1) for wrong in ("shifted", "half of the classes", "few, repeated", "noise")),
        *(("class_entropy", wrong, -1) for wrong in ("without a class", "half of the classes")),
        *(("class_divergence", wrong, 1) for wrong in ("without a class", "half of the classes")),
        ("novelty", "remembered", -1),
        ("copies", "remembered", 1),
    ],
)  # fmt: skip
def test_what_is_wrong_is_seen_well_beyond_the_floor(score, wrong, sign, found):
    """By more than twice what lies between fresh pictures and the held-out ones, or their error."""
    fresh, value = found["fresh"][score], found[wrong][score]
    noise = {"frechet_distance": fresh, "kernel_distance": 4 * found["fresh"]["kernel_distance_error"], "novelty": 0.3}
    assert sign * (value - fresh) > noise.get(score, 0.02), f"{fresh:.4g}, {wrong}: {value:.4g}"


def test_more_of_a_fault_is_worse(found):
    for score in ("frechet_distance", "kernel_distance", "class_divergence"):
        assert found["noise"][score] > found["a little noise"][score]
    for score in ("frechet_distance", "kernel_distance", "class_divergence"):
        assert found["half of the classes"][score] > found["without a class"][score] > found["fresh"][score]


def test_values_that_are_known(found):
    assert found["remembered"]["novelty"] == 0 and found["remembered"]["copies"] == 1
    assert found["half of the classes"]["class_divergence"] == pytest.approx(np.log(2), abs=0.15)
    assert found["half of the classes"]["class_entropy"] == pytest.approx(np.log(5) / np.log(10), abs=0.05)
    assert found["fresh"]["class_entropy"] > 0.98 and found["fresh"]["copies"] < 0.04
    assert abs(found["fresh"]["kernel_distance"]) < 4 * found["fresh"]["kernel_distance_error"]


def test_beside_each_stand_real_data_and_those_moved_by_a_pixel(found):
    for scores in found.values():
        assert scores["n_real"] == scores["n_fake"] == scores["n_near"] == 359 and scores["classifier_accuracy"] > 0.9
        columns, rows = side_by_side(scores)
        assert columns == ["model", "real data", "moved by a pixel"]
        values = dict(rows)
        for key in ("frechet_distance", "kernel_distance", "precision", "coverage", "novelty", "class_divergence"):
            model, real, moved = values[key]
            assert (model, real, moved) == (scores[key], scores[f"{key}_real"], scores[f"{key}_shifted"])
        assert values["n_real"][1:] == [None, None]
        assert scores["frechet_distance_shifted"] > 4 * scores["frechet_distance_real"]
        assert scores["kernel_distance_shifted"] > 10 * scores["kernel_distance_error_shifted"]
        assert {meaning.key for meaning in pictures.MEANINGS} >= {key for key, _ in rows}


# ---------------------------------------------------------------------------------------------------------------------
# Told a class
# ---------------------------------------------------------------------------------------------------------------------


def test_a_model_that_obeys_and_one_that_does_not(task, keep):
    asked = []

    def draw(n, rng, *, label, of=task.train):
        asked.append((label, n))
        return of.x[rng.choice(np.flatnonzero(of.y == task.train.classes.index(label)), n)]

    def confused(n, rng, *, label):  # 3 for 5
        return draw(n, rng, label="3" if label == "5" else label)

    def narrow(n, rng, *, label):  # the same two pictures of each class
        return np.resize(draw(2, rng, label=label), (n, *task.train.shape))

    good, wrong, same = (scored(task, d, keep, scores=pictures.scores_of_classes) for d in (draw, confused, narrow))
    counts = np.bincount(task.test.y, minlength=10)
    assert asked[:10] == [(str(k), counts[k]) for k in range(10)], "as many of each class as are held out"
    assert good["agreement"] > 0.97 and good["agreement_worst"] > 0.9
    assert good["class_diversity"] == pytest.approx(1, abs=0.05)
    assert wrong["agreement"] == pytest.approx(0.9, abs=0.03) and wrong["agreement_worst"] == wrong["agreement_of_5"] < 0.1
    assert wrong["agreement_of_3"] > 0.9
    assert same["class_diversity"] < 0.6 and same["class_diversity_worst"] <= same["class_diversity"]
    assert good["agreement_real"] > 0.97 > 0.8 > good["agreement_shifted"]


def test_families_told_classes_are_scored_by_them():
    assert gan.FAMILY.scores is pictures.scores
    for family in (gan.CONDITIONAL, vae.CONDITIONAL, flow.FAMILY):
        assert getattr(family.scores, "func", family.scores) is pictures.scores_of_classes


def test_pictures_without_classes_are_scored_by_none():
    rng = np.random.default_rng(0)
    plain = Task(*(Images(rng.random((n, 1, 9, 9), dtype=np.float32)) for n in (240, 60)), 8)
    found = scored(plain, lambda n, rng: plain.train.x[:n], scores=pictures.scores_of_classes)
    assert "agreement" not in found and found["frechet_distance"] >= 0


def test_restored_pictures_are_the_ceiling(task, keep):
    """Codes that lose nothing restore as many held-out pictures, whose distance is 0; it stands beside that of samples"""
    asked = []

    def draw(n, rng, *, label=None, of=None, y=None):
        if of is None:
            return task.train.x[:n] if label is None else task.train.x[task.train.y == int(label)][:n]
        asked.append((of, y))
        return of

    found, told = (
        scored(task, draw, keep, scores=functools.partial(scores, restores=True))
        for scores in (pictures.scores, pictures.scores_of_classes)
    )
    for of, y in asked:
        assert sorted(map(bytes, of)) == sorted(map(bytes, task.test.x)), "each held-out picture, once"
        assert sorted(zip(map(bytes, of), y, strict=True)) == sorted(zip(map(bytes, task.test.x), task.test.y, strict=True))
    for scores in (found, told):
        assert abs(scores["frechet_distance_restored"]) < 1e-3 < scores["frechet_distance"]
        assert scores["precision_restored"] == scores["recall_restored"] == 1
    assert told["agreement_restored"] > 0.97
    columns, rows = side_by_side(found)
    assert columns == ["model", "restored", "real data", "moved by a pixel"]
    assert dict(rows)["frechet_distance"][:2] == [found["frechet_distance"], found["frechet_distance_restored"]]
    alone = scored(task, draw, keep)
    assert alone == {key: value for key, value in found.items() if not key.endswith("_restored")}, "samples are scored alike"


@pytest.mark.parametrize("family, config", [
    (vae.FAMILY, vae.VAEConfig((1, 8, 8), hidden=8, latent=3)),
    (vae.CONDITIONAL, vae.VAEConfig((1, 8, 8), hidden=8, latent=3, classes=10)),
    (vqvae.FAMILY, vqvae.VQVAEConfig((1, 8, 8), hidden=8, codes=5, dim=3)),
], ids=lambda value: getattr(value, "name", ""))  # fmt: skip
def test_what_a_family_restores(family, config, task):
    random.manual_seed(0)
    model = family.model(config)
    x, y = task.test.x[:300], task.test.y[:300]  # more than are restored at a time
    if family is vqvae.FAMILY:
        model.quantize(Tensor(x))  # the codebook begins as vectors of a first batch
    model.eval()
    again = family.sample(model, {"classes": task.test.classes}, len(x), np.random.default_rng(0), of=x, y=y)
    np.testing.assert_allclose(again, model.reconstruct(x, y), atol=1e-6)
    assert family.scores.keywords == {"restores": True}


# ---------------------------------------------------------------------------------------------------------------------
# Without classes, and with little
# ---------------------------------------------------------------------------------------------------------------------


def test_pictures_without_classes_are_compared_by_their_components():
    rng = np.random.default_rng(0)
    make = lambda n: Images(rng.random((n, 1, 9, 9), dtype=np.float32))  # noqa: E731
    told = []
    found = scored(Task(make(240), make(60), 8), lambda n, rng: rng.random((n, 1, 9, 9), dtype=np.float32), say=told.append)
    assert not told and found["n_real"] == 60 and "classifier_accuracy" not in found and "class_entropy" not in found
    assert found["frechet_distance"] == pytest.approx(found["frechet_distance_real"], rel=0.2)
    assert found["copies_real"] == 1 and found["novelty"] == pytest.approx(1, abs=0.1)
    assert all(np.isfinite(value) for value in found.values())


def test_few_pictures_with_classes_are_compared_without_them(task):
    few = Images(task.train.x[:90], task.train.y[:90], task.train.classes)
    said = []
    found = scored(Task(few, task.test, 8), lambda n, rng: task.train.x[:n], say=said.append)
    assert "class_entropy" not in found and found["n_real"] == 90
    assert said == ["no score uses the classes: that needs 100 pictures to learn from, of 2 classes, and there are 90."]
    one = Images(task.train.x[:200], np.zeros(200, np.int64), task.train.classes)
    assert "class_entropy" not in scored(Task(one, task.test, 8), lambda n, rng: task.train.x[:n], say=said.append)


def test_all_samples_equal_and_all_data_equal(task, keep):
    found = scored(task, lambda n, rng: np.zeros((n, 1, 8, 8), np.float32), keep)
    assert all(np.isfinite(value) for value in found.values())
    assert found["recall"] == found["diversity"] == found["class_entropy"] == 0
    flat = Images(np.zeros((50, 1, 8, 8), np.float32))
    found = scored(Task(flat, flat, 8), lambda n, rng: np.zeros((n, 1, 8, 8), np.float32))
    assert found["frechet_distance"] == 0 and "novelty" not in found


def test_moved_by_a_pixel():
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    assert (pictures.shifted(x)[0, 0] == [[0, 0, 1], [3, 3, 4]]).all()


@pytest.mark.parametrize("n", [2, 17, 256])
def test_levels(n):
    x = (np.random.default_rng(0).integers(0, n, (40, 1, 5, 5)) / (n - 1)).astype(np.float32)
    assert pictures.levels(x) == n
    assert pictures.levels(np.float32(0.001) + np.float32(0.99) * x) is None


def test_the_classifier_never_sees_what_is_held_out(task):
    seen = {}

    def keep(name, make):
        seen[name] = True
        return trained(ClassifierConfig(task.train.shape, rounds=1), task.train.x, task.train.y).state_dict()

    scored(task, lambda n, rng: task.train.x[:n], keep)
    other = dataclasses.replace(task, test=Images(1 - task.test.x, task.test.y, task.test.classes))
    scored(other, lambda n, rng: task.train.x[:n], keep)
    assert len(seen) == 1, "other held-out pictures leave it as it is"
