"""Runs that cannot go on, that diverge, that have few data, or whose data move: each is told, and nothing is lost."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scratchgen import random
from scratchgen.__main__ import main
from scratchgen.models import GPT, GPTConfig, gpt, vae
from scratchgen.nn import Linear
from scratchgen.tensors import Tensor
from scratchgen.training import Diverged, TrainingError, adjust, divergence, loop, open_run, pictures, recipe, train
from scratchgen.training.folder import MetricsLog, load_checkpoint, read_metrics, save_checkpoint

ROOT = Path(__file__).parent.parent
TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 20
FAST = {"batch_size": 4, "log_every": 2, "sample_every": 5, "save_every": 3, "eval_batches": 1}
TINY = {
    "gan": {**FAST, "hidden": 16, "latent": 4},
    "vae": {**FAST, "hidden": 16, "latent": 3},
    "gpt": {**FAST, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16},
}


@pytest.fixture(autouse=True)
def _same_generator_afterwards():
    state = random.get_rng_state()
    yield
    random.set_rng_state(state)


REAL_CURVES = pictures.curves


@pytest.fixture(autouse=True)
def _quick_curves(monkeypatch):
    monkeypatch.setattr(pictures, "curves", lambda panels, rows: b"")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder: a text, and 25 pictures of 4×4 in a folder."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    draw(Path("pictures"), 25)
    return tmp_path


def draw(folder, n, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / f"{i:03d}.png")


def command(name, *words, data=None, steps=10, **changes):
    settings = [w for k, v in {**TINY[name], **changes}.items() for w in ("--set", f"{k}={v}")]
    path = data or ("text.txt" if name == "gpt" else "pictures")
    return ["train", name, "--quiet", "--steps", str(steps), "--data", path, *settings, *words]


def sentence(capsys):
    err = capsys.readouterr().err
    assert err.startswith("scratchgen: ") and err.endswith(".\n") and err.count("\n") == 1, err
    return err


def files(folder):
    return sorted(map(str, Path(folder).rglob("*")))


# ---------------------------------------------------------------------------------------------------------------------
# What can be known at the start
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("gpt", {"dropout": 1.5}, "recipe 'gpt'.*dropout: expected p from 0 to 1, got 1.5"),
        ("gpt", {"beta2": 1}, r"recipe 'gpt'.*betas\[1\].*below 1, got 1.0"),
        ("gan", {"beta1": 1}, r"recipe 'gan'.*betas\[0\].*below 1, got 1.0"),
        ("gan", {"batch_size": 1}, "recipe 'gan', in batches of 1: batch_norm: expected more than 1 value"),
        ("vae", {"lr": 1e30}, "recipe 'vae': .* after the first step.*--set lr=0.001 instead of 1e\\+30"),
        ("vae", {"beta": 1e30}, r"loss is \d.*e\+\d+ after the first step.*try --set beta=1 instead of 1e\+30, in"),
        ("vae", {"beta": 1e39}, "loss is inf after the first step.*try --set beta=1 instead of 1e\\+39, in another"),
        ("gpt", {"weight_decay": 1e30, "lr": 0.5}, "weight_decay=0.1 instead of 1e\\+30 and --set lr=0.001 instead of 0.5"),
    ],
)
def test_settings_that_no_run_survives_are_refused_before_anything_is_written(name, changes, said, here, capsys):
    before = files(here)
    assert main(command(name, **changes)) == 2
    assert re.search(said, sentence(capsys))
    assert files(here) == before


@pytest.mark.parametrize("n", [10, 11, 19])
def test_a_held_out_text_of_one_character_is_refused_at_the_start(n, here, capsys):
    Path("short.txt").write_text(TEXT[:n])
    before = files(here)
    assert main(command("gpt", data="short.txt", block_size=4)) == 2
    assert f"at least 2 characters held out, one to be foretold from the other, got 1 of {n}" in sentence(capsys)
    assert files(here) == before


def test_a_held_out_text_of_two_characters_is_enough(here, capsys):
    Path("short.txt").write_text(TEXT[:20])
    assert main(command("gpt", data="short.txt", block_size=4)) == 0 == main(["eval", "runs/gpt"])


@pytest.mark.parametrize(
    "name, inside, data",
    [
        ("vae", "pictures", "."),
        ("vae", "pictures/new", ".."),
        ("vae", "linked", "../holds"),
        ("vae", "both", "."),
        ("gpt", "notes", "."),
    ],
)
def test_a_run_inside_its_data_is_refused(name, inside, data, here, monkeypatch, capsys):
    """Below the folder itself, through links, and beside the folders of both splits."""
    draw(Path("both/train"), 8)
    draw(Path("both/test"), 4)
    draw(Path("linked/cats"), 25)
    for folder in ("notes", "pictures/new", "holds"):
        Path(folder).mkdir()
    Path("notes/text.txt").write_text(TEXT)
    Path("holds/linked").symlink_to(here / "linked")
    monkeypatch.chdir(inside)
    before = files(here)
    assert main(command(name, "--out", "new/run", data=data)) == 2
    assert re.search(r"new/run: lies inside the data, .*choose a folder elsewhere \(--out\)", sentence(capsys))
    assert files(here) == before


def test_a_run_in_a_hidden_folder_goes_on(here, monkeypatch):
    """What is hidden is no data."""
    monkeypatch.chdir("pictures")
    assert main(command("vae", "--out", ".runs/vae", data=".")) == 0
    assert main(["train", "vae", "--resume", "--steps", "12", "--out", ".runs/vae"]) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Pictures never end a run
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such backend"])
def test_a_backend_that_is_not_installed(backend, here):
    env = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "scratchgen", *command("vae", steps=20)]
    done = subprocess.run(words, cwd=here, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    if not (here / "runs/vae/curves.png").exists():  # Matplotlib's versions differ in what they refuse
        assert len(re.findall(r"curves.png cannot be drawn \(.*backend.*\); the run goes on", done.stdout)) == 1
    assert open_run(here / "runs/vae").step == 20 and len(files(here / "runs/vae/samples")) == 4


def test_curves_are_drawn_in_one_style_and_without_latex():
    import matplotlib

    rows = [{"step": step, "loss": 1 / step, "kl": float(step)} for step in (1, 2, 3)]
    plain = REAL_CURVES(vae.FAMILY.curves, rows)
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red"}):
        assert REAL_CURVES(vae.FAMILY.curves, rows) == plain
        assert matplotlib.rcParams["text.usetex"]


@pytest.mark.parametrize("harm", ["curves.png", "samples/000005.png", "samples/000010.png"])
def test_a_picture_that_cannot_be_written_is_remarked_on_once(harm, here, monkeypatch):
    real = loop.write_whole

    def fails(path, content):
        if str(path).endswith(harm):
            raise PermissionError(13, "Permission denied", str(path))
        real(path, content)

    monkeypatch.setattr(loop, "write_whole", fails)
    said = []
    settings = {**TINY["vae"], "data": "pictures", "steps": 20}
    assert train("vae", "run", settings, progress=False, say=said.append).step == 20
    assert sum("cannot be drawn" in line for line in said) == 1
    assert [line for line in said if "cannot be drawn" in line][0] == (
        f"run/{harm} cannot be drawn ([Errno 13] Permission denied: 'run/{harm}'); the run goes on, and says so only once."
    )
    monkeypatch.setattr(loop, "write_whole", real)
    train("vae", "whole", settings, progress=False, say=said.append)
    assert Path("run/checkpoint.safetensors").read_bytes() == Path("whole/checkpoint.safetensors").read_bytes()
    assert not Path("run", harm).exists()


def test_an_interrupt_while_drawing_is_no_picture_that_failed(here, monkeypatch):
    def stopped(panels, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "curves", stopped)
    with pytest.raises(KeyboardInterrupt):
        train("vae", "run", {**TINY["vae"], "data": "pictures", "steps": 10}, progress=False, say=lambda _: None)


# ---------------------------------------------------------------------------------------------------------------------
# Divergence
# ---------------------------------------------------------------------------------------------------------------------

WELL = [0.0, -1.5, 2.0**24 - 1, 1 - 2.0**24]
ILL = [math.nan, math.inf, -math.inf, 2.0**24, -(2.0**24), 6.5e28]


def test_one_definition_of_diverged():
    layer = Linear(2, 2)
    for x in WELL:
        divergence.check({"loss": 1.0, "kl": x}, vae.FAMILY)
        layer.bias.data = np.array([0, x], np.float32)
        divergence.check_weights(layer)
    for x in ILL:
        with pytest.raises(Diverged, match=rf"^held-out kl is {re.escape(f'{x:.4g}')}$"):
            divergence.check({"loss": 1.0, "kl": x}, vae.FAMILY, of="held-out ")
        layer.bias.data = np.array([0, x], np.float32)
        with pytest.raises(Diverged, match="the weight bias is " + ("up to" if math.isfinite(x) else "no longer finite")):
            divergence.check_weights(layer)
    assert np.spacing(np.float32(2.0**24)) == 2 and np.spacing(np.float32(2.0**24 - 1)) == 1, "the reason for the limit"


def test_a_perplexity_counts_by_its_logarithm():
    for value in (1.0, math.exp(44), math.exp(700), 0.0):
        divergence.check({"perplexity": value}, gpt.FAMILY)
    for value in (math.inf, math.nan):
        with pytest.raises(Diverged, match="perplexity is"):
            divergence.check({"perplexity": value}, gpt.FAMILY)
    with pytest.raises(Diverged, match="perplexity is"):  # to another family the word means nothing
        divergence.check({"perplexity": math.exp(44)}, vae.FAMILY)


@pytest.mark.parametrize("scale, nll", [(1.0, None), (1e4, "finite"), (np.nan, "nan")])
def test_perplexity_above_709_nats_is_infinite(scale, nll):
    """A model all of whose logits but that of token 0 are very low foretells any other token very badly."""
    model = GPT(GPTConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4, bias=True))
    model.transformer["ln_f"].weight.data = np.zeros(4, np.float32)
    model.transformer["ln_f"].bias.data = np.eye(4, dtype=np.float32)[0]
    model.transformer["wte"].weight.data = np.array([[scale, 0, 0, 0], [0] * 4, [0] * 4], np.float32)
    x = np.array([[0, 1, 2, 1]])
    found = model.evaluate([(x, np.array([[1, 2, 1, 2]]))])
    # the logits are (s, 0, 0), so that −log p of token 1 or 2 is log(eˢ + 2)
    expected = math.nan if nll == "nan" else np.logaddexp(scale, np.log(2))
    np.testing.assert_allclose(found["nll"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["perplexity"], math.inf if nll == "finite" else np.exp(expected), rtol=1e-5)


def test_what_is_suspected_of_a_divergence():
    def advice(name, **changes):
        return divergence.advice(adjust(recipe(name), changes))

    assert advice("vae") == "try --set lr=0.0001 instead of 0.001, in another folder (--out)"
    assert advice("vae", lr=1e-4) == "try --set lr=1e-05 instead of 0.0001, in another folder (--out)"
    assert advice("vae", lr=10, latent=3) == "try --set lr=0.001 instead of 10, in another folder (--out)"
    assert advice("vae", beta=50, lr=1e-4) == "try --set beta=1 instead of 50, in another folder (--out)"
    assert advice("gan", beta1=0.9, lr=1) == (
        "try --set beta1=0.5 instead of 0.9 and --set lr=0.0002 instead of 1, in another folder (--out)"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0**25])
def test_a_held_out_score_that_has_diverged_stops_the_run(value, here, monkeypatch):
    real = loop.State.advance
    from scratchgen.models import VAE

    step = []
    monkeypatch.setattr(loop.State, "advance", lambda self, batch: (real(self, batch), step.append(self.step))[0])
    evaluate = VAE.evaluate
    monkeypatch.setattr(VAE, "evaluate", lambda self, b: evaluate(self, b) | ({"kl": value} if step[-1] == 10 else {}))
    words = rf"step 10: held-out kl is {re.escape(f'{value:.4g}')}, so the run stops; the checkpoint of step 9 is kept; try"
    with pytest.raises(Diverged, match=words):
        train("vae", "run", {**TINY["vae"], "data": "pictures", "steps": 20}, progress=False, say=lambda _: None)
    assert [row["step"] for row in read_metrics(Path("run/metrics.jsonl"))] == [2, 4, 5, 6, 8]
    assert open_run("run").step == 9 and "000010.png" not in "".join(files("run"))


def test_weights_that_have_diverged_are_neither_shown_nor_saved(here, monkeypatch):
    real = loop.State.advance

    def breaks(self, batch):
        losses = real(self, batch)
        if self.step == 5:
            weight = next(self.model.parameters())
            weight.data = np.full_like(weight.data, 3e7)
        return losses

    monkeypatch.setattr(loop.State, "advance", breaks)
    with pytest.raises(Diverged, match=r"step 5: the weight encoder.fc.weight is up to 3e\+07.*step 3 is kept; try --set lr="):
        train("vae", "run", {**TINY["vae"], "data": "pictures", "steps": 20}, progress=False, say=lambda _: None)
    assert not files("run/samples") and open_run("run").step == 3


@pytest.mark.parametrize("name", ["vae", "gan", "gpt"])
@pytest.mark.parametrize("value", [np.nan, 1e38, 2.0**24])
def test_samples_and_scores_of_a_model_that_has_diverged(name, value, here, capsys):
    """As an older version may have left it: one sentence, and no file that is no JSON."""
    assert main(command(name, "--out", "run")) == 0
    tree = load_checkpoint(Path("run/checkpoint.safetensors"))
    for part in ("model", "ema"):
        for key, held in (tree[part] or {}).items():
            array = held.numpy() if isinstance(held, Tensor) else held
            if array.dtype.kind == "f":
                signs = np.where(np.arange(array.size) % 2, 1, -1).reshape(array.shape)
                tree[part][key] = (value * signs).astype(array.dtype)
    save_checkpoint(Path("run/checkpoint.safetensors"), tree)
    before = files("run")
    capsys.readouterr()
    for words in (["sample", "run"], ["eval", "run"], ["eval", "run", "--json"]):
        code = main(words)
        out, err = capsys.readouterr()
        assert code == 1 and not out
        words = r"scratchgen: run: the model has diverged by step 10, since .*; try --set lr=.*\(--out\)\.\n$"
        assert re.match(words, err), err
    assert files("run") == before


@pytest.mark.parametrize("name", ["vae", "gan", "gpt"])
def test_what_a_model_makes_is_looked_at_too(name, here, monkeypatch, capsys):
    """Weights within the limit may still overflow on their way through the layers."""
    assert main(command(name, "--out", "run")) == 0
    run = open_run("run")
    if name == "gpt":
        logits = np.full((1, 1, 30), np.nan, np.float32)
        monkeypatch.setattr(GPT, "forward", lambda self, ids, caches=None: Tensor(logits.repeat(ids.shape[1], 1)))
        monkeypatch.setattr(GPT, "loss", lambda self, ids, targets: Tensor(np.float32(np.nan)))
    else:
        monkeypatch.setattr(type(run.model), "generate", lambda self, n, generator: np.full((n, 1, 4, 4), np.nan, np.float32))
    capsys.readouterr()
    before = files("run")
    for words in (["sample", "run"], ["eval", "run"]):
        assert main(words) == 1
        assert re.search(r"run: the model has diverged by step 10, since (what the model|nll is nan)", sentence(capsys))
    assert files("run") == before


def test_what_is_written_is_json(tmp_path):
    log = MetricsLog(tmp_path / "m", keep=0)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            log.write({"step": 1, "seconds": 0.0, "loss": value})
    log.close()


def test_points_that_are_no_numbers_are_not_drawn():
    rows = [{"step": i, "loss": x} for i, x in enumerate([1.0, math.nan, math.inf, 4.0])] + [{"step": 4}]
    line = gpt.FAMILY.curves[0].lines[0]
    steps, values = pictures.points(rows, line)
    assert steps.tolist() == [0, 3] and values.tolist() == [1, 4]


# ---------------------------------------------------------------------------------------------------------------------
# Few data
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 9, 10, 15, 19, 20])
@pytest.mark.parametrize("name", ["vae", "gan"])
def test_eval_of_few_pictures(name, n, here, capsys):
    draw(Path("few"), n)
    assert main(command(name, data="few")) == 0
    capsys.readouterr()
    assert main(["eval", f"runs/{name}", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["scores"]
    assert {"vae": "elbo", "gan": "value"}[name] in found and all(map(math.isfinite, found.values()))
    assert ("frechet_distance" in found) == ("diversity_real" in found) == (n // 5 >= 4)
    told = f"scratchgen: no distances between samples and real pictures: these need 4 pictures to learn from and as many held \
out, and there are {n - n // 5} and {n // 5}.\n"
    assert err == ("" if n // 5 >= 4 else told)


def test_eval_of_many_pictures_held_out_and_few_to_learn_from(here, capsys):
    draw(Path("both/train"), 3)
    draw(Path("both/test"), 9, 3)
    assert main(command("vae", data="both", batch_size=3)) == 0 == main(["eval", "runs/vae"])
    assert "there are 3 and 9" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Data that move or change
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt", "vae"])
def test_moved_data_are_known_by_their_checksum(name, here, capsys):
    path = {"gpt": "text.txt", "vae": "pictures"}[name]
    even = {"final": 1, "warmup": 0}  # a learning rate that does not depend on the number of steps
    assert main(command(name, "--out", "whole", steps=12, **even)) == 0
    assert main(command(name, "--out", "run", **even)) == 0 == main(["eval", "run", "--json"])
    scores = capsys.readouterr().out.partition("{")[2]
    Path("elsewhere").mkdir()
    Path(path).rename(f"elsewhere/{path}")
    before = files("run")

    for words in (["train", name, "--resume", "--out", "run", "--steps", "12"], ["eval", "run"]):
        assert main(words) == 2
        assert re.search(rf"^scratchgen: run: its data are no longer at .*{path}; tell .*\(--data\)\.$", sentence(capsys))
    assert main(["eval", "run", "--json", "--data", f"elsewhere/{path}"]) == 0
    assert capsys.readouterr().out.partition('"step"')[2] == scores.partition('"step"')[2]

    other = {"gpt": "other.txt", "vae": "other"}[name]
    Path("other.txt").write_text(TEXT.replace("fox", "cat"))
    draw(Path("other"), 25, 1)
    for words in (["train", name, "--resume", "--out", "run", "--steps", "12"], ["eval", "run"]):
        assert main([*words, "--data", other]) == 2
        assert re.search(rf"run: the data in .*{other} are not those the run was begun with", sentence(capsys))
    assert files("run") == before

    # a moved run ends as one that stayed: all but the path itself is the same to the bit
    assert main(["train", name, "--resume", "--out", "run", "--steps", "12", "--data", f"elsewhere/{path}"]) == 0
    moved, stayed = (load_checkpoint(Path(f, "checkpoint.safetensors")) for f in ("run", "whole"))
    assert moved["recipe"].pop("data") == str(here / "elsewhere" / path) != stayed["recipe"].pop("data")
    assert moved.pop("model").keys() == (weights := stayed.pop("model")).keys() and moved["recipe"] == stayed["recipe"]
    run = open_run("run").model.state_dict()
    for key, array in weights.items():
        np.testing.assert_array_equal(run[key].numpy(), array)
    assert moved["random"] == stayed["random"] and moved["checksums"] == stayed["checksums"]
    assert main(["train", name, "--resume", "--out", "run", "--steps", "14"]) == 0, "the new path is remembered"
    assert main(["eval", "run"]) == 0


def test_an_added_picture_is_noticed_by_eval(here, capsys):
    """It would move pictures that were learned from among those held out."""
    assert main(command("vae", "--out", "run")) == 0
    draw(Path("pictures"), 1, 99)
    capsys.readouterr()
    assert main(["eval", "run"]) == 2
    assert "pictures are not those the run was begun with (what is learned from has another checksum)" in sentence(capsys)
    assert not Path("run/eval.json").exists()


@pytest.mark.parametrize("kind", ["pictures", "texts"])
def test_other_held_out_data_are_noticed(kind, here, capsys):
    if kind == "pictures":
        name, held_out = "vae", Path("both/test/000.png")
        draw(Path("both/train"), 8)
        draw(Path("both/test"), 6)
    else:
        name, held_out = "gpt", Path("both/test/a.txt")
        for half in ("train", "test"):
            Path("both", half).mkdir(parents=True)
            Path("both", half, "a.txt").write_text(TEXT)
    assert main(command(name, "--out", "run", data="both")) == 0 == main(["eval", "run"])
    if kind == "pictures":
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(held_out)
    else:
        held_out.write_text(TEXT.replace("quick", "kciuq"))
    capsys.readouterr()
    for words in (["eval", "run"], ["train", name, "--resume", "--out", "run", "--steps", "12"]):
        assert main(words) == 2
        assert "are not those the run was begun with (what is held out has another checksum)" in sentence(capsys)


def test_a_run_without_a_checkpoint_may_begin_elsewhere(here):
    """Killed before its first checkpoint: nothing was learned yet, so there is nothing to compare with."""
    assert main(command("vae", "--out", "run")) == 0
    Path("run/checkpoint.safetensors").unlink()
    Path("pictures").rename("moved")
    assert main(["train", "vae", "--resume", "--out", "run", "--data", "moved"]) == 0
    with pytest.raises(TrainingError, match="was begun with lr"):
        train("vae", "run", {"lr": 0.5}, resume=True, progress=False, say=lambda _: None)
