"""pix2pix: what D and G see, what a step moves and lowers, and a run from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scratchgen as sg
from scratchgen import data
from scratchgen.__main__ import main
from scratchgen.data.pairs import of_edges, of_outlines
from scratchgen.data.shapes import shapes
from scratchgen.models import Pix2Pix, Pix2PixConfig
from scratchgen.models.adversarial import OBJECTIVES
from scratchgen.models.family import OptionError
from scratchgen.models.pix2pix import FAMILY, KEPT, PatchDiscriminator, UNet, prepare, sample
from scratchgen.training import loop, open_run, pictures, report, samples


def build(**settings):
    sg.manual_seed(0)
    return Pix2Pix(Pix2PixConfig(**{"hidden": 16, **settings}))


def batch(n=4, side=16, channels=(1, 1)):
    rng = np.random.default_rng(5)
    return tuple((rng.random((n, c, side, side)) < 0.4).astype(np.float32) for c in channels)


# --------------------------------------------------------------------------------------------------------- the players


@pytest.mark.parametrize("side", [28, 32, 33])
def test_a_logit_sees_a_patch_of_16_by_16(side):
    """The slope of one logit in the middle with respect to the pictures. Norms, which see all positions, are taken out."""
    sg.manual_seed(0)
    d = PatchDiscriminator(1, 2, 16, "instance").double()
    d.conv2[1] = sg.nn.Identity()
    a, b = (sg.randn(1, c, side, side, dtype=np.float64, requires_grad=True) for c in (1, 2))
    logits = d(a, b)
    rows = side // 2 - 2
    assert logits.shape == (1, rows * rows)
    middle = rows // 2
    for slope in sg.grad(logits[0, middle * rows + middle], [a, b]):
        seen = np.argwhere((slope.data != 0).any((0, 1)))
        assert (seen.max(0) - seen.min(0) + 1).tolist() == [16, 16]
        assert len(seen) == 256, "every pixel of the patch counts"


@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 32), (17, 30)])
def test_g_keeps_the_size_and_every_pixel_sees_far(height, width):
    sg.manual_seed(0)
    g = UNet(2, 3, 16, 0.5, "instance").eval()
    a = sg.randn(2, 2, height, width, requires_grad=True)
    made = g(a)
    assert made.shape == (2, 3, height, width) and np.abs(made.data).max() <= 1
    (slope,) = sg.grad(made[1, 0, 8, 8], a)
    assert not slope.data[0].any(), "what a picture becomes does not depend on those beside it"
    assert (slope.data[1, :, :17, :17] != 0).all()


def test_skips_carry_what_the_middle_has_not():
    """Each skip has a share in what is made; and with the way through the middle cut, the picture still decides it."""
    g, a = build().generator.eval(), sg.randn(1, 1, 28, 28)
    whole = g(a).data
    for convolution, from_below in ((g.up2[0], 8), (g.up1[0], 4), (g.out, 2)):  # the channels after these are the skip's
        kept = convolution.weight.data.copy()
        with sg.no_grad():
            convolution.weight.copy_(np.where(np.arange(kept.shape[1])[:, None, None] < from_below, kept, 0))
            assert np.abs(g(a).data - whole).max() > 1e-3
            convolution.weight.copy_(kept)
    assert np.array_equal(g(a).data, whole)
    with sg.no_grad():
        g.up3[0].weight.zero_()
    assert np.abs(g(a).data - g(-a).data).max() > 1e-2


def test_dropout_acts_in_training_alone():
    model, (a, _) = build(), batch()
    assert not np.array_equal(model.translate(a), model.translate(a))
    model.eval()
    assert np.array_equal(model.translate(a), model.translate(a))
    np.testing.assert_allclose(model.translate(a)[2:3], model.translate(a[2:3]), atol=1e-6)  # one by one as together


# ------------------------------------------------------------------------------------------------------------- a step


def test_losses_by_hand():
    """With G's last layer at 0 all pictures are grey, 0 inside; with D's at 0, all logits are its bias, 0.3."""
    model, (a, b) = build(l1=7.0, adversarial=2.0), batch()
    with sg.no_grad():
        for p in (model.generator.out.weight, model.generator.out.bias, model.discriminator.judge.weight):
            p.zero_()
        model.discriminator.judge.bias.fill_(0.3)
    before = model.generator.out.bias.data.copy()

    class Kept(sg.optim.SGD):
        """Moves nothing, and keeps the gradients of the step."""

        def step(self):
            self.grads = [p.grad.data.copy() for group in self.param_groups for p in group["params"]]

    optimizers = {k: Kept(getattr(model, k).parameters(), lr=1.0) for k in ("discriminator", "generator")}
    told = model.training_step((a, b), optimizers)
    softplus = lambda t: np.log1p(np.exp(t))  # noqa: E731
    expected = {"loss_d": softplus(-0.3) + softplus(0.3), "loss_g": softplus(-0.3), "l1": 0.5}
    assert {k: told[k] for k in expected} == pytest.approx(expected, rel=1e-5)
    assert told["d_real"] == told["d_fake"] == pytest.approx(1 / (1 + np.exp(-0.3)))
    names = [name for name, _ in model.generator.named_parameters()]
    by_bias = optimizers["generator"].grads[names.index("out.bias")]
    assert by_bias == pytest.approx([-7 * np.sign(2 * b - 1).mean()], rel=1e-4), "λ d|made − b|, and D has no slope"
    by_judge = optimizers["discriminator"].grads[-1]
    p = 1 / (1 + np.exp(-0.3))
    assert by_judge == pytest.approx([2 * p - 1], rel=1e-4), "(σ − 1) of the real, σ of the made"
    assert np.array_equal(before, model.generator.out.bias.data)


def test_the_weights_of_both_parts():
    """The gradient of G is the weighted sum of those of each part alone."""
    grads = {}
    for weights in ((2.0, 0.0), (0.0, 3.0), (2.0, 3.0)):
        model = build(adversarial=weights[0], l1=weights[1], dropout=0.0).double()
        optimizers = {k: sg.optim.SGD(getattr(model, k).parameters(), lr=0.0) for k in ("discriminator", "generator")}
        model.training_step(tuple(x.astype(np.float64) for x in batch()), optimizers)
        grads[weights] = np.concatenate([p.grad.data.ravel() for p in model.generator.parameters()])
    both = grads[2.0, 0.0] + grads[0.0, 3.0]
    assert np.abs(both).max() > 1e-3
    np.testing.assert_allclose(grads[2.0, 3.0], both, atol=1e-12)


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_one_step_moves_exactly_the_parameters_of_each_player(loss):
    for frozen in ("discriminator", "generator"):
        model = build(loss=loss)
        before = {k: v.data.copy() for k, v in model.named_parameters()}
        optimizers = model.optimizers()
        optimizers[frozen].step = lambda: None
        assert all(np.isfinite(v) for v in model.training_step(batch(), optimizers).values())
        for name, p in model.named_parameters():
            moved = not np.array_equal(p.data, before[name])
            if name != "discriminator.judge.bias":  # which shifts all logits: of no account to some objectives
                assert moved != name.startswith(frozen), name


def test_by_l1_alone_d_is_never_touched():
    model = build(adversarial=0.0)
    model.discriminator.forward = None  # calling it would fail
    before = {k: v.data.copy() for k, v in model.named_parameters()}
    optimizers = model.optimizers()
    told = model.training_step(batch(), optimizers)
    assert told["loss_d"] == told["loss_g"] == told["grad_d"] == told["d_real"] == 0 < told["grad_g"]
    assert not optimizers["discriminator"].state_dict()["state"]
    for name, p in model.named_parameters():
        assert np.array_equal(p.data, before[name]) == name.startswith("discriminator"), name
        assert (p.grad is None) == name.startswith("discriminator"), name
    found = model.eval().evaluate([batch()])
    assert found["d_real"] == found["d_fake"] == 0 < found["l1"]


def test_it_learns_eight_pairs_by_heart():
    """Of pairs that only a memory can translate: the pictures b were dealt out at random."""
    made = of_outlines(shapes("train", 0, 8), "shapes")
    a, b = made.a[..., 8:24, 8:24], made.b[::-1, :, 8:24, 8:24]
    model = build(in_channels=3, out_channels=3, hidden=32, dropout=0.0, lr=5e-3, l1=50.0)
    optimizers = model.optimizers()
    first = model.evaluate([(a, b)])["l1"]
    for _ in range(90):
        model.training_step((a, b), optimizers)
    assert model.evaluate([(a, b)])["l1"] < 0.25 * first


def test_scores_of_held_out_pairs():
    model, (a, b) = build().eval(), batch(6)
    made = model.translate(a)
    whole, parts = (model.evaluate(batches) for batches in ([(a, b)], [(a[:4], b[:4]), (a[4:], b[4:])]))
    assert whole == pytest.approx(parts, rel=1e-5)
    assert whole["l1"] == pytest.approx(np.abs(made - b).mean(), rel=1e-5)
    perfect = Pix2Pix(model.config)
    perfect.translate = lambda a: b
    alike = {"d_real": 0, "d_fake": 0, "auc": 0.5, "spacing": 1}
    assert perfect.evaluate([(a, b)]) | {"d_real": 0, "d_fake": 0} == {"l1": 0, "sharpness": 1, **alike}
    perfect.translate = lambda a: np.zeros_like(b)
    assert perfect.evaluate([(a, b)])["spacing"] == 0
    perfect.translate = lambda a: 0.5 + 0.25 * (b - 0.5)
    assert perfect.evaluate([(a, b)])["sharpness"] == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden": 12}, "hidden divisible by 8, got 12"),
        ({"adversarial": 0.0, "l1": 0.0}, "above 0, got 0 for both"),
        ({"loss": "banana"}, "'banana'"),
    ],
)
def test_bad_settings_get_one_clear_sentence(settings, said):
    with pytest.raises(ValueError, match=said):
        build(**settings)


# ---------------------------------------------------------------------------------------------------------- the family


def some(n=20, side=16, a=1, b=3):
    rng = np.random.default_rng(1)
    return data.Pairs(*(rng.random((n, c, side, side), dtype=np.float32) for c in (a, b)))


def test_a_checkpoint_keeps_held_out_pairs():
    train_, test = prepare(some(), some(40), {"reverse": False})
    assert len(train_.metadata()["a"]) == KEPT and np.array_equal(train_.metadata()["b"][1], some(40).b[2])
    few, _ = prepare(some(), some(3), {"reverse": False})
    assert np.array_equal(few.metadata()["a"], some(3).a)
    turned, held_out = prepare(some(), some(3), {"reverse": True})
    assert turned.a.shape[1] == 3 and held_out.b.shape[1] == 1 and np.array_equal(turned.metadata()["a"], some(3).b)
    for other, said in ((some(b=1), r"one shape of b, got \(3, 16, 16\)"), (some(side=17), "one shape of a")):
        with pytest.raises(data.DataError, match=said):
            prepare(some(), other, {"reverse": False})
    with pytest.raises(data.DataError, match="sides of at least 16 pixels"):
        prepare(some(side=15), some(side=15), {"reverse": False})


def test_samples_are_translations_beside_the_truth():
    model, rng = build(out_channels=3).eval(), np.random.default_rng(0)
    kept = {"a": some(4).a, "b": some(4).b}
    three = sample(model, kept, 2, rng)
    assert three.shape == (2, 3, 16, 48)
    assert np.array_equal(three[:, :, :, :16], kept["a"][:2].repeat(3, 1)) and np.array_equal(three[..., 32:], kept["b"][:2])
    assert np.array_equal(three[..., 16:32], model.translate(kept["a"][:2]))
    assert np.array_equal(sample(model, kept, 9, rng, image=kept["a"]), model.translate(kept["a"]))
    assert len(sample(model, kept, KEPT, rng)) == 4, "as many as are kept, which is all of few"
    with pytest.raises(OptionError, match="at most 16, the held-out pairs that a run keeps, got 17"):
        sample(model, kept, KEPT + 1, rng)


# ------------------------------------------------------------------------------------------------------ a run of a folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """30 pairs A|B: the edges of grey discs, and the discs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "curves", lambda panels, rows: b"")
    rng, at = np.random.default_rng(0), np.arange(16)
    for i in range(30):
        x, y, r = rng.uniform(5, 11), rng.uniform(5, 11), rng.uniform(3, 5)
        disc = np.where(np.hypot(at - x, at[:, None] - y) < r, rng.uniform(0.5, 1), 0).astype(np.float32)[None, None]
        pair = of_edges(data.Images(disc), "disc")
        path = Path("pairs") / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.rint(255 * np.concatenate([pair.a, pair.b], 3)[0, 0]).astype(np.uint8)).save(path)
    state = sg.random.get_rng_state()
    yield tmp_path
    sg.random.set_rng_state(state)


TOY = ["--data", "pairs", "--set", "hidden=8", "--set", "batch_size=4", "--set", "sample_every=4", "--set", "save_every=3"]


def test_a_run_of_a_folder_of_pairs(folder, monkeypatch, capsys):
    assert main(["train", "pix2pix", "--quiet", "--steps", "8", "--out", "whole", *TOY]) == 0
    assert "24 pairs of images, 1×16×16 to 1×16×16" in capsys.readouterr().out
    advance = loop.State.advance

    def killed(self, batch):
        if self.step == 5:
            raise KeyboardInterrupt
        return advance(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.State, "advance", killed)
        assert main(["train", "pix2pix", "--quiet", "--steps", "8", "--out", "parts", *TOY]) == 130
    assert main(["train", "pix2pix", "--quiet", "--resume", "--out", "parts"]) == 0
    for name in ("checkpoint.safetensors", "samples/000004.png", "samples/000008.png"):
        assert Path("whole", name).read_bytes() == Path("parts", name).read_bytes(), name

    assert main(["sample", "whole", "-n", "4", "--out", "held-out.png"]) == 0
    with Image.open("held-out.png") as sheet:
        assert sheet.size == (3 * (1 + 2 * 49), 3 * (1 + 2 * 17)), "a | G(a) | b, two by two, each pixel as 3 by 3"
    given = data.load("pairs", kind=data.Pairs).a[0, 0]
    Image.fromarray(np.rint(255 * given).astype(np.uint8)).save("given.png")
    assert main(["sample", "whole", "--image", "given.png", "--out", "made.png"]) == 0
    run = open_run("whole")
    made = samples(run, 1, 0, image="given.png")
    assert made.shape == (1, 1, 16, 16) and np.array_equal(made, run.model.translate(given[None, None]))
    assert main(["eval", "whole"]) == 0
    found = json.loads(Path("whole/eval.json").read_text())["scores"]
    assert {"l1", "sharpness", "frechet_distance", "frechet_distance_real"} <= set(found) and 0 < found["l1"] < 1
    report.page(Path("index.html"), [(run, found)])
    page = Path("index.html").read_text(encoding="utf-8")
    assert "judges besides, patch by patch" in page and "Held-out pictures; below each" in page


def test_mistakes_at_the_command_line(folder, monkeypatch, capsys):
    small = data.named.NAMED["fashion-edges"]._replace(load=lambda split, seed: some())
    monkeypatch.setitem(data.named.NAMED, "fashion-edges", small)
    assert main(["train", "pix2pix", "--quiet", "--steps", "1", "--out", "run", *TOY]) == 0
    Path("no.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save("wide.png")
    capsys.readouterr()
    for words, said in (
        (["sample", "run", "--image", "none.png"], "none.png: cannot be read (No such file or directory)."),
        (["sample", "run", "--image", "no.png"], "no.png: expected an image that Pillow can read"),
        (["sample", "run", "--image", "wide.png"], "wide.png: expected sides in the ratio of 16×16 (height × width)"),
        (["sample", "run", "-n", "17"], "-n: expected at most 16, the held-out pairs that a run keeps, got 17"),
        (["sample", "run", "--label", "3"], "--label: the recipe 'pix2pix' does not take it; it takes --image."),
        (["train", "pix2pix", "--data", "digits", "--out", "x"], "learns from pairs, and this is images"),
        (["train", "vae", "--data", "fashion-edges", "--out", "x"], "learns from images, and this is pairs"),
    ):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_curves_and_averaging_are_declared():
    assert FAMILY.averaged == "generator"
    told = build().training_step(batch(), build().optimizers())
    keys = {*told, *(f"test_{k}" for k in build().eval().evaluate([batch()]))}
    assert {line.key for panel in FAMILY.curves for line in panel.lines} <= keys
