"""Text to image: captions as tokens, the encoder and the losses by hand, what moves, what is drawn, read back and refused."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image

from scratchgen import data, no_grad, random
from scratchgen.__main__ import main
from scratchgen.data import Captioned, CaptionTokens
from scratchgen.data import shapes as S
from scratchgen.models import text2image as M
from scratchgen.models.family import OptionError
from scratchgen.tensors import Tensor
from scratchgen.text import WordTokenizer

SMALL = M.TextGANConfig(shape=(3, 8, 8), words=9, length=5, features=6, hidden=8, latent=4)


@pytest.fixture(autouse=True)
def _same_generator_afterwards():
    state = random.get_rng_state()
    yield
    random.set_rng_state(state)


def build(config=SMALL, seed=0):
    random.manual_seed(seed)
    return M.TextGAN(config)


def batch(n=6, seed=0, config=SMALL):
    rng = np.random.default_rng(seed)
    ids, wrong = rng.integers(0, config.words, (2, n, config.length))
    ids[:, 3:], wrong[::2, 4:] = -1, -1
    return rng.random((n, *config.shape), dtype=np.float32), ids, wrong


# ------------------------------------------------------------------------------------------------------ captions as tokens


def tokens(captioned):
    tokenizer = WordTokenizer.train(captioned.captions)
    return CaptionTokens(captioned, tokenizer, max(len(c.split()) for c in captioned.captions))


def test_batches_hold_true_and_false_captions_and_are_functions_of_seed_and_step():
    train = S.shapes("train", n=200)
    told = tokens(train)
    for step, (x, ids, wrong) in enumerate(itertools.islice(told.batches(64, seed=3), 5)):
        assert x.shape == (64, 3, 32, 32) and ids.shape == wrong.shape == (64, told.length) and ids.dtype == np.int64
        rows = [int(np.flatnonzero((train.x == picture).all((1, 2, 3)))[0]) for picture in x]
        for row, true, false in zip(rows, ids, wrong, strict=True):
            assert told.tokenizer.decode(true[true >= 0]) == train.captions[row]
            stated = S.parse(told.tokenizer.decode(false[false >= 0]))
            assert (stated[stated >= 0] != train.attributes[row][stated >= 0]).any(), "false of the picture"
        again = next(told.batches(64, seed=3, start=step))
        assert all(np.array_equal(a, b) for a, b in zip(again, (x, ids, wrong), strict=True))
    first, second = (next(told.batches(200, seed=3, start=step))[2] for step in (0, 1))
    assert not np.array_equal(np.sort(first, 0), np.sort(second, 0)), "false captions are drawn anew in each epoch"
    once, twice = (list(told.in_order(64)) for _ in range(2))
    assert sum(len(x) for x, *_ in once) == 200 and all(np.array_equal(a[2], b[2]) for a, b in zip(once, twice, strict=True))


def test_held_out_words_that_are_not_known_are_left_out():
    train = Captioned(np.zeros((2, 1, 8, 8), np.float32), captions=("a cat", "a dog"))
    test = Captioned(np.zeros((2, 1, 8, 8), np.float32), captions=("a green cat", "Dog, a dog, a dog!"))
    a, b = M.prepare(train, test, {})
    assert a.tokenizer.words == ("a", "cat", "dog") and a.length == b.length == 2
    assert b.tokens(test.captions).tolist() == [[0, 1], [2, 0]]
    assert json.loads(json.dumps(a.metadata())) == a.metadata() and a.metadata()["captions"] == ["a cat", "a dog"]
    assert [c.tobytes() for c in a.contents()] != [c.tobytes() for c in dataclasses.replace(a, length=3).contents()]
    with pytest.raises(data.DataError, match="pictures of one shape"):
        M.prepare(train, dataclasses.replace(test, x=np.zeros((2, 1, 8, 4), np.float32)), {})


# ---------------------------------------------------------------------------------------------------- the game by hand


def test_the_encoder_by_hand():
    """h = Σ_t e + a(W (e + p) + b), over the words that are there, brought to length √n."""
    random.manual_seed(1)
    encoder = M.TextEncoder(9, 5, 6)
    e, p, w, b = (a.data for a in (encoder.words.weight, encoder.places.weight, encoder.fc.weight, encoder.fc.bias))
    ids = np.array([[3, 0, 8, -1, -1], [2, -1, -1, -1, -1], [1, 2, 3, 4, 5], [-1] * 5])
    for row, c in zip(ids, encoder(Tensor(ids)).data, strict=True):
        words = row[row >= 0]
        y = np.array([w @ (e[word] + p[t]) + b for t, word in enumerate(words)]).reshape(-1, 6)
        h = (e[words] + np.where(y > 0, y, 0.2 * y)).sum(0)
        np.testing.assert_allclose(c, np.sqrt(6) * h / max(np.linalg.norm(h), 1e-9), rtol=1e-5, atol=1e-5)
    a, b = encoder(Tensor(np.array([[1, 2, 3, -1, -1], [3, 2, 1, -1, -1]]))).data
    assert np.abs(a - b).max() > 1e-3, "the order of words counts"


@pytest.mark.parametrize(("mismatched", "by_hand"), [(1.0, 0.875), (0.0, 1.0), (3.0, 0.25 + 0.75 / 4 + 0.75 / 2)])
def test_the_loss_of_d_by_hand(mismatched, by_hand):
    """real: (½ + 0)/2 = ¼;  generated: (0 + 1½)/2 = ¾;  mismatched: (1 + 0)/2 = ½; weights 1, 1/(1 + m), m/(1 + m)."""
    model = build(dataclasses.replace(SMALL, mismatched=mismatched))
    logits = (Tensor(np.array(d)) for d in ([0.5, 2.0], [-2.0, 0.5], [0.0, -3.0]))
    assert model.loss_d(*logits).item() == pytest.approx(by_hand, abs=1e-12)


def test_d_judges_three_kinds_of_pairs_as_if_each_were_alone():
    model = build().eval()
    x, ids, wrong = (Tensor(a) for a in batch())
    fake = Tensor(batch(seed=1)[0])
    logits = [d.data for d in model.discriminator.pairs(x, fake, ids, wrong)]
    alone = [model.discriminator(*pair).data for pair in ((x, ids), (fake, ids), (x, wrong))]
    np.testing.assert_allclose(logits, alone, atol=1e-6)
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(logits, 2)) > 1e-4


def test_every_layer_of_d_has_spectral_norm_1():
    model = build()
    model.training_step(batch(), model.optimizers())
    layers = [m for m in model.discriminator.modules() if hasattr(m, "parametrizations")]
    assert len(layers) == 8, "three convolutions, the judge's two maps, words, places, and the encoder's map"
    model.eval()
    for layer in layers:
        w = layer.weight.data
        assert np.linalg.svd(w.reshape(len(w), -1), compute_uv=False)[0] == pytest.approx(1, abs=0.1)


# ------------------------------------------------------------------------------------------------------------- what moves


@pytest.mark.parametrize("loss", ["hinge", "non-saturating", "relativistic"])
def test_two_steps_move_every_parameter(loss):
    model = build(dataclasses.replace(SMALL, loss=loss))
    before = {k: v.data.copy() for k, v in model.named_parameters()}
    optimizers = model.optimizers()
    for seed in range(2):
        losses = model.training_step(batch(seed=seed), optimizers)
    assert all(math.isfinite(v) for v in losses.values())
    for name, p in model.named_parameters():
        if not name.endswith("network.judge.fc.bias"):  # a shift of all logits leaves these losses as they are
            assert (p.data != before[name]).any(), f"{name} stayed as it was"


def test_each_player_moves_only_its_own_parameters():
    model = build()
    optimizers = model.optimizers()

    class Frozen:
        def zero_grad(self):
            pass

        def step(self):
            pass

    for player, other in [("discriminator", "generator"), ("generator", "discriminator")]:
        before = {k: v.data.copy() for k, v in model.named_parameters()}
        model.training_step(batch(), optimizers | {other: Frozen()})
        moved = {k.split(".")[0] for k, v in model.named_parameters() if (v.data != before[k]).any()}
        assert moved == {player}


def test_false_captions_count_as_much_as_their_weight():
    def after(mismatched, wrong_seed):
        model = build(dataclasses.replace(SMALL, mismatched=mismatched))
        x, ids, _ = batch()
        model.training_step((x, ids, batch(seed=wrong_seed)[2]), model.optimizers())
        return np.concatenate([p.data.ravel() for p in model.discriminator.parameters()])

    assert np.array_equal(after(0.0, 1), after(0.0, 2)) and not np.array_equal(after(1.0, 1), after(1.0, 2))


def test_d_learns_by_heart_which_captions_of_eight_pictures_are_true():
    model = build(dataclasses.replace(SMALL, lr=1e-2))
    x, ids, wrong = batch(8)
    optimizers = model.optimizers()
    for _ in range(40):
        model.training_step((x, ids, wrong), optimizers)
    true, false = (model.eval().discriminator(Tensor(x * 2 - 1), Tensor(captions)).data for captions in (ids, wrong))
    assert (true - false).min() > 0.3, "by a margin, for each picture"


# -------------------------------------------------------------------------------------------------------- what is drawn

METADATA = {"tokenizer": WordTokenizer("abcdefghi"), "length": 5, "captions": ["a b", "c"]}


def test_scores_of_a_generator_that_makes_one_picture():
    model, rng = build().eval(), np.random.default_rng(1)
    x, ids, wrong = batch(40)
    batches = [(x[:25], ids[:25], wrong[:25]), (x[25:], ids[25:], wrong[25:])]
    model.generator.forward = lambda z, ids: Tensor(rng.uniform(-1, 1, (len(z), *SMALL.shape)).astype(np.float32))
    assert 0.5 < model.evaluate(batches)["spacing"] < 2
    one = np.full((1, *SMALL.shape), 0.3, np.float32)
    model.generator.forward = lambda z, ids: Tensor(one.repeat(len(z), 0))
    found = model.evaluate(batches)
    with no_grad():
        real, fake, _ = model.discriminator.pairs(Tensor(x * 2 - 1), Tensor(one.repeat(40, 0)), Tensor(ids), Tensor(wrong))
    above = (real.data[:, None] > fake.data) + 0.5 * (real.data[:, None] == fake.data)
    assert found["spacing"] == 0 and found["auc"] == pytest.approx(above.mean(), abs=2e-3)


def test_samples_of_a_caption_of_several_and_of_none():
    model = build().eval()
    with no_grad():
        for p in model.generator.parameters():  # away from weights so small that all pictures are grey
            p.copy_(Tensor(np.random.default_rng(p.numel()).normal(0, 0.3, p.shape).astype(np.float32)))

    def draw(n, **options):
        return M.sample(model, METADATA, n, np.random.default_rng(2), **options)

    one = draw(3, prompt="A, b!")
    assert one.shape == (3, 3, 8, 8) and one.min() >= 0 and one.max() <= 1
    assert np.array_equal(one, draw(3, prompt=["a b"])) and np.abs(one - draw(3, prompt="b a")).max() > 1e-4
    assert np.array_equal(draw(3), draw(3, prompt=["a b", "c", "a b"])), "captions that were learned from, in turn"
    way = model.between(np.array([[0, 1, -1, -1, -1]]), np.array([[2, -1, -1, -1, -1]]), 3, generator=np.random.default_rng(2))
    ends = [M.sample(model, METADATA, 1, np.random.default_rng(2), prompt=p) for p in ("a b", "c")]
    np.testing.assert_allclose(way[[0, 2]], np.concatenate(ends), atol=1e-6)
    assert min(np.abs(way[1] - way[0]).max(), np.abs(way[2] - way[1]).max()) > 1e-5, "every step changes something"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a pink b", "--prompt: the word 'pink' is not known; expected words of a, b, c, d, e, f, g, h, i."),
        ("a b c a b c", "--prompt: expected 1 to 5 words, got 6."),
        ("…", "--prompt: expected 1 to 5 words, got 0."),
    ],
)
def test_captions_that_cannot_be_drawn(prompt, said):
    with pytest.raises(OptionError) as error:
        M.sample(build().eval(), METADATA, 1, np.random.default_rng(0), prompt=prompt)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": (3, 9, 8)}, "divisible by 4, got"),
        ({"hidden": 6}, "hidden divisible by 4, got 6"),
        ({"loss": "banana"}, "expected an objective of"),
    ],
)
def test_settings_that_cannot_be(changes, said):
    with pytest.raises(ValueError, match=said):
        M.TextGAN(dataclasses.replace(SMALL, **changes))


# ------------------------------------------------------------------------------------------------------ what is read back


def test_readings_by_hand():
    stated = np.array([[0, 1], [1, -1], [-1, 0], [1, 1]])
    read = np.array([[0, 1], [0, 1], [1, 0], [1, 0]])
    assert M.readings(read, stated, ("size", "colour")) == {"read_size": 2 / 3, "read_colour": 2 / 3, "read_all": 1 / 2}
    assert M.readings(read[1:2], stated[1:2], ("size", "colour")) == {"read_size": 0.0}


def test_scores_compare_what_is_read_with_what_is_stated(monkeypatch):
    """A model that draws its captions exactly, but for squares, which it draws as circles."""
    train, test = S.shapes("train", n=40), S.shapes("test", n=400)
    told = [tokens(train), CaptionTokens(test, WordTokenizer.train(train.captions), 12)]
    asked = []

    def draw(n, rng, prompt):
        asked.append(list(prompt))
        attributes = np.maximum([S.parse(prompt[i % len(prompt)]) for i in range(n)], 0)
        attributes[attributes[:, S.SHAPE] == 1, S.SHAPE] = 0
        return S.draw(S.scenes(attributes[:, None], rng))

    class Reader:
        def read(self, x):
            planted = {picture.tobytes(): a for s in (test, *drawn) for picture, a in zip(s.x, s.attributes, strict=True)}
            return None, np.array([planted[picture.tobytes()] for picture in x])

    drawn = []

    def spied(n, rng, prompt):
        x = draw(n, rng, prompt)
        attributes = np.maximum([S.parse(prompt[i % len(prompt)]) for i in range(n)], 0)
        attributes[attributes[:, S.SHAPE] == 1, S.SHAPE] = 0
        drawn.append(dataclasses.replace(test, x=x, captions=("a",) * n, attributes=attributes, stated=None, unseen=None))
        return x

    def trained(config, x, y, keep):
        assert config.heads == (2, 6, 6, 9) and S.is_unseen(y).any() and x.shape[1:] == config.shape == (3, 32, 32)
        return Reader()

    monkeypatch.setattr(S, "COUNTS", {**S.COUNTS, "reader": 100})
    monkeypatch.setattr(M.pictures, "scores", lambda *_: {"frechet_distance": 1.0})
    monkeypatch.setattr(M.classifier, "trained", trained)
    found = M.scores(data.Task(*told, 8), {}, spied, np.random.default_rng(0), print, None)
    assert found["frechet_distance"] == 1.0 and asked[-1] == list(test.captions)
    assert all(
        v == 1
        for k, v in found.items()
        if (k.endswith("_real") and "_n" not in k) or "size" in k or "colour" in k or "position" in k
    )
    for suffix, rows in (("", ~test.unseen), ("_unseen", test.unseen)):
        shape, whole = test.stated[rows, S.SHAPE], (test.stated[rows] >= 0).all(1)
        assert found[f"read_shape{suffix}"] == pytest.approx(1 - (shape[shape >= 0] == 1).mean())
        assert found[f"read_all{suffix}"] == pytest.approx(1 - (shape[whole] == 1).mean())
        assert found[f"read_n{suffix}"] == M.EACH * rows.sum() and found[f"read_n{suffix}_real"] == rows.sum()


# --------------------------------------------------------------------------------------------------- on the command line


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Twenty pictures of 8 × 8 with captions: a red or blue half, above or below."""
    folder = tmp_path_factory.mktemp("own") / "halves"
    folder.mkdir()
    lines = []
    for i in range(20):
        x = np.zeros((8, 8, 3), np.uint8)
        x[slice(0, 4) if i % 2 else slice(4, 8), :, 0 if i % 4 < 2 else 2] = 150 + 5 * i
        Image.fromarray(x).save(folder / f"{i:02d}.png")
        lines.append(f"{i:02d}.png\t{'red' if i % 4 < 2 else 'blue'} {'above' if i % 2 else 'below'}\n")
    (folder / "captions.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def test_trained_resumed_sampled_and_scored_on_ones_own_pictures(own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["batch_size=8", "hidden=8", "latent=4", "features=6", "sample_every=4", "save_every=3"]
    settings = ["--data", str(own), "--quiet", *(word for pair in small for word in ("--set", pair))]
    assert main(["train", "text2image-gan", "--out", "whole", "--steps", "6", *settings, "--set", "final=1"]) == 0
    for steps in ("3", "6"):
        command = ["train", "text2image-gan", "--out", "parts", "--steps", steps, "--resume", *settings, "--set", "final=1"]
        assert main(command) == 0
    for name in ("checkpoint.safetensors", "samples/000006.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    assert main(["sample", "whole", "-n", "4", "--prompt", "red above", "--out", "red.png"]) == 0
    with Image.open("red.png") as made:
        assert made.mode == "RGB" and made.size[0] > 16
    capsys.readouterr()
    assert main(["sample", "whole", "--prompt", "green above"]) == 2
    said = capsys.readouterr().err
    assert "the word 'green' is not known; expected words of above, below, blue, red." in said and "Traceback" not in said
    assert main(["eval", "whole"]) == 0
    assert main(["train", "text2image-gan", "--data", "digits", "--out", "no"]) == 2
    assert "captioned" in capsys.readouterr().err
