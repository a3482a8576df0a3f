"""What the curves of a run say: each rule beside its figures by hand, and on a run that was made to fail in its way."""

import dataclasses
import html
import math

import numpy as np
import pytest

from scratchgen import data, random
from scratchgen.models import GAN, adversarial, doctor, gan, gpt, pix2pix, priors, text2image, vae
from scratchgen.models.gan import GANConfig
from scratchgen.models.vae import VAEConfig
from scratchgen.models.vqvae import VQVAEConfig
from scratchgen.tensors import Tensor
from scratchgen.training import RECIPES, loop, open_run, pictures, report, train
from tests.strategies import DEEP

HEALTHY = ["gan", "dcgan", "lsgan", "hinge-gan", "sngan", "wgan-gp", "r3gan", "cgan", "vae", "vae-conv", "vqvae", "fsq"]
TINY = {"data": "digits", "hidden": 16, "batch_size": 16, "eval_batches": 16, "ema": 0.9, "save_every": 1000}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "curves", lambda panels, rows: b"")


@pytest.fixture(autouse=True)
def _same_generator_afterwards():
    state = random.get_rng_state()
    yield
    random.set_rng_state(state)


# ---------------------------------------------------------------------------------------------------------------------
# Runs made to fail
# ---------------------------------------------------------------------------------------------------------------------


def told(folder, name="gan", table=RECIPES, resume=False, **changes):
    """What `train` says of a run's curves: each remark with its step."""
    said = []
    train(name, folder, changes, resume=resume, progress=False, say=said.append, table=table)
    return [line for line in said if line.startswith("step ")]


GAME = {**TINY, "sample_every": 1000}
CODED = {"ema": 0, "steps": 500, "sample_every": 250, "final": 1, "eval_batches": 4}
FEW = {"batch_size": 16, "sample_every": 50, "data": "few"}


@pytest.mark.parametrize(
    "name, changes, expected",
    [
        ("gan", {**GAME, "steps": 320, "loss": "minimax", "lr_d": 2e-2, "dropout": 0},
         "D has won: real 1, generated |for 300 steps|G's gradient went from |--set loss=non-saturating or --set lr_d=0.002"),
        ("gan", {**GAME, "steps": 320, "lr_d": 1e-6, "lr": 2e-3}, "D has lost: for 300 steps|--set lr_d=1e-05"),
        ("gan", {**GAME, "steps": 500, "lr": 0.1, "lr_d": 2e-4, "sample_every": 100},
         "G has collapsed: |, at steps 400 and 500|--set lr=0.01"),
        ("gan", {**GAME, **FEW, "steps": 350, "lr": 1e-3, "lr_d": 3e-3, "hidden": 64, "dropout": 0},
         "D overfits: |generated |--set r1=1"),
        ("vae", {**FEW, "steps": 400, "lr": 1e-2, "hidden": 64, "final": 1}, "by heart: held-out elbo was -27.|on more data"),
        ("vae", {**TINY, "ema": 0, "steps": 500, "lr": 1e-8, "sample_every": 1000}, "loss is flat: loss was 4|--set lr=1e-07"),
        ("vae", {**TINY, **CODED, "beta": 50.0}, "posterior has collapsed: 0 of 8 |--set beta=5 or --set free_bits=0.1"),
        ("vae", {**TINY, **CODED, "free_bits": 2.0}, "parked at the free bits: 8 of 8 latents cost the 2 |--set free_bits=0.5"),
        ("vae", {**TINY, **CODED, "likelihood": "learned-gaussian", "sigma_min": 0.2},
         "scale is at its floor, 0.2, in |--set pixels=dequantized|--set sigma_min=2"),
        ("vqvae", {**TINY, **CODED, "lr": 0.1}, "codes are dead: |of 128 are used|--set lr=0.01"),
        ("fsq", {**TINY, **CODED, "lr": 0.3}, "codes are dead: |of 128 are used|--set lr=0.03"),
    ],
)  # fmt: skip
def test_a_run_made_to_fail_is_told_so(name, changes, expected, tmp_path):
    if changes["data"] == "few":
        learned, held_out = data.load("digits"), data.load("digits", split="test")
        np.savez(tmp_path / "few.npz", x_train=learned.x[:32], x_test=held_out.x)
        changes = {**changes, "data": str(tmp_path / "few.npz")}
    (said,) = told(tmp_path / "run", name, **changes)[-1:]
    assert said.startswith(f"step {changes['steps']}: ") and said.endswith(".")
    for words in expected.split("|"):
        assert words in said, said


def test_a_prior_that_learns_codes_by_heart_is_told_so(tmp_path):
    learned, held_out = data.load("digits"), data.load("digits", split="test")
    np.savez(tmp_path / "few.npz", x_train=learned.x[:32], x_test=held_out.x)
    short = {"data": "digits", "hidden": 8, "codes": 8, "dim": 4, "batch_size": 16, "eval_batches": 1}
    train("vqvae", tmp_path / "codec", {**short, "steps": 4}, progress=False, say=lambda text: None)
    small = {"n_layer": 1, "n_embd": 32, "batch_size": 32, "warmup": 0, "final": 1, "ema": 0.9, "sample_every": 50}
    few = {**small, "data": str(tmp_path / "few.npz"), "begun_from": str(tmp_path / "codec")}
    (said,) = told(tmp_path / "run", "prior", **few, steps=200)
    assert "step 200: the model learns by heart: held-out nats_per_code was " in said and said.count("on more data") == 1


def test_a_loss_that_lies_flat_says_something_of_whole_numbers_alone():
    """An EM of points is done after some rounds, and has no learning rate"""
    flat = {"loss": 11.0, "test_nll": 11.0, "train_nll": 11.0}
    assert not priors.FAMILY.diagnose(rows(range(100, 1000, 10), **flat), priors.PriorConfig())
    codes = {**flat, "test_nats_per_code": 2.0, "train_nats_per_code": 2.0}
    (said,) = priors.FAMILY.diagnose(rows(range(100, 1000, 10), **codes), priors.PriorConfig()).values()
    assert "the loss is flat" in said and "--set lr=0.02" in said


@pytest.mark.parametrize("name", HEALTHY if DEEP else ["gan"])
def test_a_healthy_run_is_left_alone(name, tmp_path):
    assert not told(tmp_path / "run", name, data="digits", hidden=32, steps=800 if DEEP else 500, sample_every=100)


# ---------------------------------------------------------------------------------------------------------------------
# The rules, by hand
# ---------------------------------------------------------------------------------------------------------------------


def rows(steps=range(10, 610, 10), **values):
    """Rows of metrics; a value is a number, or what makes one of a step."""
    return [{"step": s, "seconds": 0.0, **{k: v(s) if callable(v) else v for k, v in values.items()}} for s in steps]


def test_lately_is_so_many_steps_and_so_many_rows():
    def window(run, **how):
        found = doctor.lately(run, **how)
        return (found[0]["step"], found[-1]["step"], len(found)) if found else None

    assert window(rows()) == (300, 600, 31) and window(rows(range(10, 310, 10))) is None
    assert window(rows(range(10, 320, 10))) == (10, 310, 31)
    assert window(rows(range(0, 6000, 500))) == (1000, 5500, 10), "a row each 500 steps: ten of them"
    assert window(rows(range(0, 4500, 500))) is None and window([]) is None
    assert window(rows(), steps=100, least=3) == (500, 600, 11)


CODES = {"test_kl": 0.1, "test_perplexity": 3.0}


@pytest.mark.parametrize(
    "rule, config, key, at, beyond, words",
    [
        (doctor.posterior_collapse, VAEConfig(latent=20, beta=4.0), "test_active_units", 3, 4,
         "3 of 20 latents are active, 0.1 nats in all|--set beta=0.4 or --set free_bits=0.1"),
        (doctor.posterior_collapse, VAEConfig(latent=20, free_bits=0.1), "test_active_units", 3, 4,
         "let the code cost less at first (--set beta_warmup=0.3)"),
        (doctor.posterior_collapse, VAEConfig(latent=20, free_bits=0.1, beta_warmup=0.5, beta=0.5), "test_active_units", 3, 4,
         "(--set beta=0.05)"),
        (doctor.posterior_collapse, VAEConfig(latent=20, samples=5), "test_active_units", 3, 4,
         "learn faster, or fewer (--set lr=0.003 or --set latent=5)"),
        (doctor.parked_at_free_bits, VAEConfig(latent=20, free_bits=2.0), "test_parked", 16, 15,
         "16 of 20 latents cost the 2 nats that are free|--set free_bits=0.5"),
        (doctor.scale_at_floor, VAEConfig(sigma_min=0.02), "test_at_floor", 0.21, 0.2,
         "floor, 0.02, in 21 % of pixels|--set sigma_min=0.2"),
        (doctor.dead_codes, VQVAEConfig(codes=100, lr=1e-2), "test_codes_used", 49, 50,
         "49 of 100 are used by held-out pictures, as various as 3 evenly used ones|--set lr=0.001"),
        (doctor.dead_codes, VQVAEConfig(quantizer="fsq", levels="5,5"), "test_codes_used", 12, 13, "12 of 25 are used"),
    ],
)  # fmt: skip
def test_rules_of_autoencoders(rule, config, key, at, beyond, words):
    """At the threshold a sentence, beyond it none; none before step 500, of one snapshot, or where one of two is healthy"""
    run = [{"step": step, **CODES, key: at} for step in (250, 500)]
    said = rule(run, config)
    for part in words.split("|"):
        assert part in said, said
    assert not rule([{**row, key: beyond} for row in run], config)
    assert not rule([run[0], {**run[1], key: beyond}], config) and not rule([{**run[0], key: beyond}, run[1]], config)
    assert not rule(run[1:], config) and not rule([{**row, "step": row["step"] - 1} for row in run], config)
    assert not rule(rows(loss=1.0), config)


@pytest.mark.parametrize(
    "rule, config, figures",
    [  # at the last two snapshots of `scratchgen train RECIPE --seed 0`, with --data digits --steps 500 where it is named so
        (doctor.posterior_collapse, VAEConfig(latent=20), {"test_active_units": (20, 20)}),  # vae-conv
        (doctor.posterior_collapse, VAEConfig(latent=10, beta=3.0), {"test_active_units": (10, 10)}),  # cvae
        (doctor.posterior_collapse, VAEConfig(latent=50, samples=5), {"test_active_units": (49, 50)}),  # iwae, 1,500 steps
        (doctor.parked_at_free_bits, VAEConfig(latent=20, free_bits=0.1), {"test_parked": (1, 0)}),  # vae, digits
        (doctor.scale_at_floor, VAEConfig(), {"test_at_floor": (0.0, 0.0)}),  # vae, digits, likelihood=learned-gaussian
        (doctor.dead_codes, VQVAEConfig(), {"test_codes_used": (127, 127)}),  # vqvae, digits, hidden=16 batch_size=32
        (doctor.dead_codes, VQVAEConfig(quantizer="fsq"), {"test_codes_used": (117, 120)}),  # fsq, digits, the same
    ],
)
def test_rules_of_autoencoders_leave_recorded_healthy_runs_alone(rule, config, figures):
    for key, values in figures.items():
        run = [{"step": step, **CODES, key: value} for step, value in zip((400, 500), values, strict=True)]
        assert rule(run, config) is None
        assert rule([{**row, key: 0 if "floor" not in key and "parked" not in key else 20} for row in run], config), "if failed"


def test_a_loss_that_weighs_the_bound_may_give_some_of_it_away():
    falling = {"loss": 50.0, "train_elbo": lambda step: -30.0 - step / 10, "test_elbo": lambda step: -30.0 - step / 10}
    weighed = vae.FAMILY.diagnose(rows(range(100, 700, 100), **falling), VAEConfig(beta=4.0))
    bound = vae.FAMILY.diagnose(rows(range(100, 700, 100), **falling), VAEConfig())
    assert "unlearns" in "".join(bound.values()) and "unlearns" not in "".join(weighed.values())


def test_of_many_samples_the_weighted_bound_tells():
    """The ELBO may fall while the bound that is raised rises: q then serves the best of the samples, not each of them"""
    elbo = {"loss": 50.0, "train_elbo": lambda step: -30.0 - step / 10, "test_elbo": lambda step: -30.0 - step / 10}
    bound = {key.replace("elbo", "bound"): value for key, value in elbo.items() if key != "loss"}
    steps, config = range(100, 700, 100), VAEConfig(samples=5)
    assert not vae.FAMILY.diagnose(
        rows(steps, **elbo, test_bound=lambda step: step / 10, train_bound=lambda step: step / 10), config
    )
    (said,) = vae.FAMILY.diagnose(rows(steps, **{**elbo, "test_elbo": -30.0, "train_elbo": -30.0}, **bound), config).values()
    assert said.startswith("the model unlearns: held-out bound was -40 at step 100 and is -90 now")


SURE = {"loss_d": 0.02, "d_real": 0.99, "d_fake": 0.01, "grad_g": lambda step: 3.0 if step < 110 else 1e-6}


def test_d_has_won():
    config = GANConfig(loss="minimax", lr_d=0.02)
    assert doctor.d_has_won(rows(**SURE), config) == (
        "D has won: real 0.99, generated 0.01 for 300 steps, its loss 1 % of what it is where D can tell nothing; G's gradient "
        "has vanished, from 3 to 1e-06: give D less of an advantage (--set loss=non-saturating or --set lr_d=0.002)"
    )
    still = doctor.d_has_won(rows(**{**SURE, "grad_g": 3.0}), GANConfig())
    assert "G's gradient went from 3 to 3" in still and still.endswith("(--set lr_d=2e-05)")
    assert not doctor.d_has_won(rows(range(10, 310, 10), **SURE), config), "not for 300 steps yet"
    for name, objective in adversarial.OBJECTIVES.items():
        for share, said in ((0.049, True), (0.051, False)):
            found = doctor.d_has_won(rows(**{**SURE, "loss_d": share * objective.blind}), GANConfig(loss=name))
            assert bool(found) == (said and name != "wasserstein"), "a critic's loss has no floor"


@pytest.mark.parametrize("name", adversarial.OBJECTIVES)
def test_blind_is_the_least_that_a_discriminator_lowers_that_judges_all_alike(name):
    objective = adversarial.OBJECTIVES[name]
    losses = [objective.discriminator(d, d).item() for d in (Tensor(np.full(4, c)) for c in np.linspace(-3, 3, 601))]
    assert min(losses) == pytest.approx(objective.blind, abs=1e-12)


@pytest.mark.parametrize("family", [text2image.FAMILY, pix2pix.FAMILY], ids=lambda family: family.name)
def test_the_other_games_are_watched_too(family):
    config = family.config(loss="hinge")
    said = list(family.diagnose(rows(**{**SURE, "l1": lambda step: 30 / step}), config).values())
    assert len(said) == 1 and said[0].startswith("D has won: ") and "--set lr_d=" in said[0]
    lost = list(family.diagnose(rows(loss_d=2.0, d_real=-0.5, d_fake=0.5, l1=lambda step: 30 / step), config).values())
    assert len(lost) == 1 and lost[0].startswith("D has lost: ")
    judged = {"train_d_real": 0.93, "test_d_real": 0.31, "test_d_fake": 0.12, "train_auc": 0.98, "test_auc": 0.6}
    scored = [{"step": step, "test_spacing": 0.01, **judged} for step in (400, 500)]
    alike, heart = family.diagnose(scored, config).values()
    assert alike.startswith("G has collapsed: ") and heart.startswith("D overfits: "), (
        "and no r1 is advised, which is no setting"
    )
    assert alike.endswith("(--set lr=%g)" % (config.lr / 10)) and heart.endswith("take more pictures or fewer steps")


def test_where_there_is_no_d_nothing_is_said_of_it():
    alone = pix2pix.Pix2PixConfig(adversarial=0.0)
    none = dict.fromkeys(("loss_d", "d_real", "d_fake", "grad_d"), 0.0)
    assert not pix2pix.FAMILY.diagnose(rows(**none, grad_g=1.0, l1=lambda step: 30 / step), alone)
    (flat,) = pix2pix.FAMILY.diagnose(rows(**none, grad_g=1.0, l1=0.2), alone).values()
    assert "the loss is flat: l1 was 0.2" in flat


def test_d_has_lost():
    wrong = {"d_fake": 0.7, "d_real": 0.4}
    said = doctor.d_has_lost(rows(**wrong), GANConfig(lr=2e-4))
    assert said.startswith("D has lost: for 300 steps it has judged generated pictures above real ones (0.7 and 0.4)")
    assert "--set lr_d=0.002" in said
    for right, found in ((3, True), (4, False)):  # of 31 steps
        odd = rows(d_real=0.4, d_fake=lambda step, right=right: 0.3 if step > 600 - 10 * right else 0.7)
        assert bool(doctor.d_has_lost(odd, GANConfig())) == found
    assert not doctor.d_has_lost(rows(d_fake=0.5, d_real=0.5), GANConfig()), "where D can tell nothing it has not lost"


@pytest.mark.parametrize(
    "spacing, found",
    [
        ([0.9, 0.9, 0.1, 0.1], True),
        ([0.9, 0.9, 0.1, 0.109], True),
        ([0.9, 0.9, 0.1, 0.112], False),  # on its way back
        ([0.9, 0.9, 0.21, 0.1], False),  # not for two snapshots yet
        ([0.1, 0.1, 0.1, 0.21], False),
        ([0.1, 0.1], False),  # as the pictures of every G are at first
        ([0.0, 0.0, 0.0], True),
    ],
)
def test_collapse(spacing, found):
    run = [{"step": 200 * (i + 1), "test_spacing": x} for i, x in enumerate(spacing)]
    assert bool(doctor.collapse(run, GANConfig())) == found


def test_d_overfits():
    def said(*aucs):
        judged = {"train_d_real": 0.93, "test_d_real": 0.31, "test_d_fake": 0.12}
        return doctor.d_overfits(
            [{"step": i, "train_auc": a, "test_auc": b, **judged} for i, (a, b) in enumerate(aucs)], GANConfig()
        )

    assert said((0.98, 0.6), (0.99, 0.55)).startswith(
        "D overfits: it judges pictures to learn from 0.93, held-out ones 0.31 and generated ones 0.12, and ranks the first "
        "above the last in 98 % of pairs, but held-out ones in 60 %"
    )
    assert not said((0.98, 0.6)) and not said((0.98, 0.9), (0.98, 0.6)), "not for two snapshots yet"
    assert not said((0.98, 0.75), (0.98, 0.75)), "half of what D knows holds for others too"
    assert not said((0.89, 0.5), (0.89, 0.5))


def test_flat():
    rule = doctor.flat("loss")
    assert rule(rows(loss=3.0), vae.VAEConfig()) == (
        "the loss is flat: loss was 3 in its first steps and is 3 after 600, so the model learns nothing; raise its learning "
        "rate (--set lr=0.01)"
    )
    assert not rule(rows(range(10, 490, 10), loss=3.0), vae.VAEConfig()), "it is early yet"
    for last, found in ((2.95, True), (2.93, False)):
        assert bool(rule(rows(loss=lambda step, last=last: 3.0 if step < 100 else last), vae.VAEConfig())) == found
    assert not rule(rows(loss=lambda step: -10.0 * step), vae.VAEConfig()), "a density's loss may be below 0"


@pytest.mark.parametrize("sign", [1, -1])
def test_held_out(sign):
    rule = doctor.held_out("nll", sign)

    def said(tested, learned):
        scores = zip(tested, learned, strict=True)
        run = [{"step": 0, "loss": 4.0}, {"step": 1, "loss": 4.0}, {"step": 2, "loss": 4.0}]
        run += [{"step": 100 * i + 100, "test_nll": sign * a, "train_nll": sign * b} for i, (a, b) in enumerate(scores)]
        return rule(run, vae.VAEConfig())

    heart = said([3.0, 2.5, 2.5, 2.5, 2.49], [3.0, 2.4, 2.2, 2.1, 2.0])
    low, high = f"{sign * 2.5:.4g}", f"{sign * 2.49:.4g}"
    assert heart == (
        f"the model learns by heart: held-out nll was {low} at step 200 and is {high} now, that of training data went from "
        f"{sign * 2.4:.4g} to {sign * 2.0:.4g}; train for 200 steps, on more data, or a smaller model"
    )
    assert not said([3.0, 2.5, 2.5, 2.49], [3.0, 2.4, 2.1, 2.0]), "not for three snapshots yet"
    assert not said([3.0, 2.5, 2.4, 2.3, 2.2], [3.0, 2.3, 2.0, 1.8, 1.6]), "apart, but held-out data are learned too"
    assert not said([3.0, 2.2, 2.2, 2.2, 2.2], [3.0, 2.0, 2.0, 2.0, 2.0]), "no longer learning"
    known = said([2.0, 2.3, 2.5, 2.6], [1.0, 0.99, 0.98, 0.98])
    assert known.startswith("the model learns by heart"), "training data were known at the first snapshot, and still are"
    lost = said([3.0, 2.0, 2.3, 2.4], [3.0, 2.0, 2.3, 2.4])
    assert lost.startswith("the model unlearns: held-out nll was ") and lost.endswith("(--set lr=0.0001)")
    assert not said([3.0, 2.0, 2.4, 2.1], [3.0, 2.0, 2.4, 2.1]), "made good"


def test_rows_that_do_not_tell_what_a_rule_reads_say_nothing():
    for family in (gan.FAMILY, gan.CONDITIONAL, vae.FAMILY, gpt.FAMILY):
        assert family.rules and family.diagnose([], family.config()) == {}
        assert family.diagnose([{"step": 1000, "seconds": 1.0}], family.config()) == {}


# ---------------------------------------------------------------------------------------------------------------------
# What the rules read of a game
# ---------------------------------------------------------------------------------------------------------------------


def test_scores_of_a_generator_that_makes_one_picture():
    random.manual_seed(0)
    model = GAN(GANConfig(shape=(1, 4, 4), hidden=8, latent=3)).eval()
    rng = np.random.default_rng(0)
    batches = [(rng.random((100, 1, 4, 4), dtype=np.float32), None) for _ in range(4)]
    assert 0.01 < model.evaluate(batches)["spacing"] < 1
    last = list(model.generator.parameters())[-2]
    last.data = np.zeros_like(last.data)
    found = model.evaluate(batches)
    judged = model.discriminator(Tensor(np.concatenate([x for x, _ in batches]) * 2 - 1)).data
    one = model.discriminator(model.generator(model.noise(1))).data
    assert found["spacing"] == 0 and found["auc"] == np.mean(judged > one)
    assert model.evaluate([(x[:1], y) for x, y in batches[:1]])["spacing"] == 1, "of one picture nothing can be said"
    last.data = np.full_like(last.data, np.nan)
    with np.errstate(all="ignore"):
        assert all(map(math.isnan, (model.evaluate(batches)[key] for key in ("value", "auc", "spacing"))))


# ---------------------------------------------------------------------------------------------------------------------
# Who is told, and when
# ---------------------------------------------------------------------------------------------------------------------


def speaking(*when):
    """A table whose recipe "vae" has rules that speak at these steps."""
    rules = tuple(lambda rows, config, at=at: f"at <{rows[-1]['step']}>" if rows[-1]["step"] in at else None for at in when)
    recipe = RECIPES["vae"]
    return {"vae": dataclasses.replace(recipe, family=dataclasses.replace(recipe.family, rules=rules))}


STEPS = {"data": "digits", "hidden": 4, "latent": 2, "batch_size": 4, "eval_batches": 1, "log_every": 1, "sample_every": 2}


def test_a_sentence_is_said_once_and_again_when_it_comes_back_and_at_the_end(tmp_path):
    table = speaking({4, 6, 10, 12}, {3, 7}, {2, 12})
    said = told(tmp_path / "run", "vae", table, steps=12, **STEPS)
    assert said == [f"step {s}: at <{s}>." for s in (2, 4, 10, 12, 12)], "rules are asked at each snapshot"


def test_a_resumed_run_says_the_same(tmp_path, monkeypatch):
    table, steps = speaking({4, 6, 8, 12}, {6, 10, 12}), {**STEPS, "steps": 12, "save_every": 3}
    whole = told(tmp_path / "whole", "vae", table, **steps)
    assert whole == [f"step {s}: at <{s}>." for s in (4, 6, 10, 12, 12)]
    real, said = loop.State.advance, []

    def dies(self, batch):
        if self.step == 7:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(loop.State, "advance", dies)
    with pytest.raises(KeyboardInterrupt):
        train("vae", tmp_path / "cut", steps, progress=False, say=said.append, table=table)
    monkeypatch.setattr(loop.State, "advance", real)
    before = [line for line in said if line.startswith("step ")]
    assert before + told(tmp_path / "cut", "vae", table, resume=True) == whole


def test_a_remark_stands_beside_a_bar_and_on_the_page(tmp_path, capsys):
    table = speaking({4})
    train("vae", tmp_path / "run", {**STEPS, "steps": 4}, progress=True, say=lambda line: None, table=table)
    assert "step 4: at <4>.\n" in capsys.readouterr().err
    report.page(tmp_path / "index.html", [(open_run(tmp_path / "run", table=table), {})])
    assert f'<p class="remark">{html.escape("At <4>.")}</p>' in (tmp_path / "index.html").read_text(encoding="utf-8")
