"""A family plugs in: a model of its own file, a recipe in a table, and nothing of the library is touched.

The first section is all that a family needs; it stands for a file of `scratchgen/models` and a row of the recipes.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scratchgen import data, nn, no_grad, optim, random
from scratchgen import functional as F
from scratchgen.__main__ import main
from scratchgen.models import gpt
from scratchgen.models.family import Family, Line, Option, OptionError, Page, Panel, Pictures, Score
from scratchgen.tensors import Tensor
from scratchgen.training import (
    RECIPES,
    Recipe,
    TrainingError,
    adjust,
    divergence,
    loop,
    open_run,
    recipe,
    report,
    samples,
    scores,
    train,
)

# ---------------------------------------------------------------------------------------------------------------------
# The family: each class has one picture of logits l,  log p(x | y) = Σ_i x_i log σ(l_yi) + (1 − x_i) log(1 − σ(l_yi))
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToyConfig:
    shape: tuple[int, int, int] = (1, 8, 8)
    classes: int = 10
    lr: float = 0.1


class Toy(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.logits = config, nn.Embedding(config.classes, math.prod(config.shape))

    def nll(self, x, y):
        logits = self.logits(Tensor(y))
        return F.binary_cross_entropy_with_logits(logits, Tensor(x).flatten(1), reduction="sum") / len(x)

    def optimizers(self):
        return {"adam": optim.Adam(self.parameters(), lr=self.config.lr)}

    def training_step(self, batch, optimizers):
        loss = self.nll(*batch)
        optimizers["adam"].zero_grad()
        loss.backward()
        optimizers["adam"].step()
        return {"loss": loss.item()}

    @no_grad()
    def evaluate(self, batches):
        return {"nll": float(np.mean([self.nll(x, y).item() for x, y in batches]))}


def draw_digits(model, metadata, n, rng, *, digit=None):
    names = metadata["classes"]
    if digit is not None and digit not in names:
        raise OptionError(f"--digit: expected one of {', '.join(names)}, got {digit!r}.")
    y = rng.integers(len(names), size=n) if digit is None else np.full(n, names.index(digit))
    p = F.sigmoid(model.logits(Tensor(y))).data
    return (rng.random(p.shape) < p).astype(np.float32).reshape(n, *model.config.shape)


TOY = Family(
    name="toy",
    title="One picture for each class",
    model=Toy,
    config=ToyConfig,
    learns_from=data.Images,
    decided={"shape": lambda images: images.shape, "classes": lambda images: len(images.classes)},
    makes="pictures",
    sample=draw_digits,
    options=(Option("digit", str, "the class to draw", "K"),),
    meanings=(Score("nll", "−log *p*", -1, "nats per held-out picture"),),
    curves=(Panel("−log p, nats", (Line("loss", "training"), Line("test_nll", "held out", held_out=True))),),
    page=lambda model, metadata, task, draw: Page(
        "Each class has *one* picture.", ("p ( x )",), [Pictures(draw(8, np.random.default_rng(0), digit="3"), 8, "Threes.")]
    ),
)
TABLE = {
    **RECIPES,
    "toy": Recipe("toy", "one picture for each class", TOY, "digits", ema=0.9, sample_every=6, save_every=6, steps=12),
}


# ---------------------------------------------------------------------------------------------------------------------
# It is trained, resumed, sampled from, scored and shown
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _same_generator_afterwards():
    state = random.get_rng_state()
    yield
    random.set_rng_state(state)


def run(folder, table=TABLE, **changes):
    return train("toy", folder, changes, resume=True, progress=False, say=lambda _: None, table=table)


def test_a_family_of_ones_own_trains_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    advance = loop.State.advance

    def killed(self, batch):
        if self.step == 8:
            raise KeyboardInterrupt
        return advance(self, batch)

    monkeypatch.setattr(loop.State, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    monkeypatch.setattr(loop.State, "advance", advance)
    run(tmp_path / "parts")
    for name in ("config.json", "checkpoint.safetensors", "curves.png", "samples/000006.png", "samples/000012.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    trained = open_run(tmp_path / "whole", table=TABLE)
    assert trained.step == 12 and trained.model.config.classes == 10 and trained.metadata["classes"] == list("0123456789")
    assert scores(trained)["nll"] < 64 * math.log(2), "better than a coin for each pixel"
    threes = samples(trained, 500, 0, digit="3").mean(0)
    assert np.abs(threes - samples(trained, 500, 1, digit="0").mean(0)).max() > 0.2, "the digit asked for is drawn"
    report.page(tmp_path / "index.html", [(trained, scores(trained))])
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    for words in (
        "One picture for each class",
        "Each class has <i>one</i> picture.",
        "−log <i>p</i> ↓",
        "Threes.",
        "a column each",
    ):
        assert words in text
    with pytest.raises(TrainingError, match="no recipe is called 'toy'"):
        open_run(tmp_path / "whole")


def test_the_command_line_takes_its_recipe_and_its_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "toy", "--quiet"], TABLE) == 0
    assert (
        main(["sample", "runs/toy", "--digit", "7", "-n", "4", "--out", "seven.png"], TABLE) == 0 and Path("seven.png").exists()
    )
    assert main(["eval", "runs/toy"], TABLE) == 0 and json.loads(Path("runs/toy/eval.json").read_text())["scores"]["nll"] > 0
    assert main(["recipes", "toy"], TABLE) == 0
    capsys.readouterr()
    for words, said in (
        (["sample", "runs/toy", "--digit", "x"], "--digit: expected one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, got 'x'."),
        (["sample", "runs/toy", "--prompt", "x"], "--prompt: the recipe 'toy' does not take it; it takes --digit."),
    ):
        assert main(words, TABLE) == 2
        assert capsys.readouterr().err == f"scratchgen: {said}\n"
    assert main(["sample", "runs/toy", "--digit", "7"]) == 2, "without its table nobody knows the digit"
    assert "unrecognized arguments: --digit" in capsys.readouterr().err


def test_settings_that_the_data_decide_are_not_set():
    assert set(recipe("toy", TABLE).model) == {"lr"}
    for name in ("shape", "classes"):
        with pytest.raises(TrainingError, match=f"{name}: the data decide it"):
            adjust(recipe("toy", TABLE), {name: 3})


# ---------------------------------------------------------------------------------------------------------------------
# What it says of itself and is not so
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"decided": {"depth": len}}, "family 'toy': the data decide 'depth', which is no field of its config"),
        ({"rates": ("lr", "lr_d")}, "family 'toy': its learning rate 'lr_d' is no setting of its config"),
        ({"options": (Option("prompt", str, "", "TEXT"),)}, "family 'toy': its option 'prompt' is no keyword of its sample"),
        ({"makes": "smells"}, "family 'toy': makes 'smells', and what can be written is pictures, points, text"),
        ({"averaged": "generator"}, "family 'toy': averages 'generator', which is no part of its model"),
        ({"curves": (Panel("", (Line("kl", ""),)),)}, "family 'toy': draws the curve 'kl', and its model tells loss, test_nll"),
        ({"learns_from": data.Text}, "the recipe 'toy' learns from text, and this is images, from which gan, .* can learn"),
    ],
)
def test_what_a_family_declares_wrongly_is_refused_in_one_sentence(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said) as caught:
        other = dataclasses.replace(TABLE["toy"], family=dataclasses.replace(TOY, **changes))
        run(tmp_path / "run", {**TABLE, "toy": other})
    assert str(caught.value).count("\n") == 0 and not (tmp_path / "run").exists()


def test_a_recipe_with_a_setting_that_its_family_lacks():
    with pytest.raises(TrainingError, match="recipe 'toy': depth is no setting of the family 'toy'"):
        dataclasses.replace(TABLE["toy"], model={"depth": 3})


def test_an_option_that_two_families_take_is_read_in_one_way(capsys):
    def two(option):
        other = dataclasses.replace(TOY, name="other", options=(option,))
        return {**TABLE, "other": dataclasses.replace(TABLE["toy"], name="other", family=other)}

    assert main(["recipes"], two(Option("digit", int, "the class to draw", "K"))) == 2
    assert "--digit: the families of the recipes read its value in different ways" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sample", "--help"], two(Option("digit", str, "the class of the picture", "NAME")))
    assert "--digit K the class to draw; the class of the picture" in " ".join(capsys.readouterr().out.split())
    twice = {
        **TABLE,
        "gpt2": dataclasses.replace(RECIPES["gpt"], name="gpt2", family=dataclasses.replace(gpt.FAMILY, name="2")),
    }
    for table in (RECIPES, twice):
        with pytest.raises(SystemExit):
            main(["sample", "--help"], table)
        assert capsys.readouterr().out.count("below 1 tamer") == 1, "what two families say alike is said once"


# ---------------------------------------------------------------------------------------------------------------------
# What computes a run
# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_remembers_what_computed_it_and_remarks_on_a_change(tmp_path, monkeypatch):
    said = []

    def go(steps, **now):
        monkeypatch.setattr(loop.machine, "now", lambda device: {"device": device, **now})
        train("toy", tmp_path, {"steps": steps}, resume=True, progress=False, say=said.append, table=TABLE)
        return json.loads((tmp_path / "config.json").read_text())["machines"]

    first = {"from": 0, "device": "cpu", "kernels": "cpu", "threads": 2}
    assert go(2, kernels="cpu", threads=2) == go(4, kernels="cpu", threads=2) == [first]
    assert not [line for line in said if "other means" in line]
    assert go(6, kernels="cpu", threads=4) == [first, {**first, "from": 4, "threads": 4}]
    assert [line for line in said if "other means" in line] == [
        f"{tmp_path}: goes on by other means than before (threads 2, now 4), so its bits may differ from there on."
    ]
    for strange in ([], [3], [{"from": "x"}], 5, None):
        config = {**json.loads((tmp_path / "config.json").read_text()), "machines": strange}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(TrainingError, match="config.json: not the configuration of a run"):
            go(8, kernels="cpu", threads=4)


def test_a_rate_that_follows_another_is_not_advised():
    """A discriminator's rate of 0 is the generator's: after a divergence only a rate that is set can be lowered."""
    raised = adjust(recipe("dcgan"), {"lr": 10})
    assert divergence.advice(raised) == "try --set lr=0.001 instead of 10, in another folder (--out)"
    both = adjust(recipe("dcgan"), {"lr_d": 10})
    assert divergence.advice(both).startswith("try --set lr=0.0001 instead of 0.001 and --set lr_d=0 instead of 10")
