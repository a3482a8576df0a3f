"""The loop and its folder: what was interrupted ends bit for bit where it would have ended; what is damaged is refused."""

import base64
import dataclasses
import html.parser
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scratchgen import data, random
from scratchgen.models import vae
from scratchgen.training import (
    RECIPES,
    Diverged,
    TrainingError,
    adjust,
    demo,
    loop,
    open_run,
    pictures,
    recipe,
    recipes,
    report,
    scores,
    settings,
    train,
)
from scratchgen.training.folder import load_checkpoint, read_metrics, save_checkpoint, write_whole

ROOT = Path(__file__).parent.parent
FAST = {"batch_size": 8, "log_every": 2, "sample_every": 5, "save_every": 3, "eval_batches": 1}
TINY = {
    "gan": {**FAST, "data": "digits", "hidden": 16, "latent": 4, "ema": 0.9},
    "dcgan": {**FAST, "data": "digits", "hidden": 8, "latent": 4},
    "vae": {**FAST, "data": "digits", "hidden": 16, "latent": 3, "final": 0.1, "warmup": 3},
    **dict.fromkeys(
        ("lsgan", "hinge-gan", "sngan", "wgan-gp", "r3gan", "cgan"), {**FAST, "data": "digits", "hidden": 8, "latent": 4}
    ),
    "toy-gan": {**FAST, "hidden": 16, "latent": 2, "ema": 0.9},
    "toy-flow": {**FAST, "hidden": 16, "ema": 0.9},
    **dict.fromkeys(("vae-conv", "beta-vae", "cvae"), {**FAST, "data": "digits", "hidden": 4, "latent": 3}),
    **dict.fromkeys(("vqvae", "fsq"), {**FAST, "data": "digits", "hidden": 8, "codes": 9, "levels": "3,3"}),
    "iwae": {**FAST, "data": "digits", "hidden": 8, "latent": 3},
    "pix2pix": {**FAST, "hidden": 8},
    "text2image-gan": {**FAST, "hidden": 8, "features": 8, "latent": 4},
    "flow": {**FAST, "data": "digits", "hidden": 8},
    "prior": {**FAST, "n_layer": 1, "n_head": 2, "n_embd": 16},
    "gpt": {**FAST, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1, "warmup": 3},
}


@pytest.fixture(autouse=True)
def _quick_curves(request, monkeypatch):
    """Drawing takes longer than the steps of tiny models; one test looks at real curves."""
    if "leaves_its_folder" not in request.node.name:
        monkeypatch.setattr(pictures, "curves", lambda panels, rows: json.dumps([row["step"] for row in rows]).encode())


@pytest.fixture(autouse=True)
def _few_likelihoods(monkeypatch):
    """Five thousand samples for each of 200 pictures take longer than the steps of tiny models, too."""
    monkeypatch.setattr(vae, "PROBED", 3)


@pytest.fixture(autouse=True)
def _same_generator_afterwards():
    state = random.get_rng_state()
    yield
    random.set_rng_state(state)


@pytest.fixture(scope="module")
def small_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "small.txt"
    path.write_text("the quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 20)
    (path.parent / "pairs").mkdir()
    for i in range(40):
        both = np.random.default_rng(i).integers(0, 256, (16, 32), dtype=np.uint8)
        Image.fromarray(both).save(path.parent / "pairs" / f"{i}.png")
    (path.parent / "captioned").mkdir()
    for i in range(40):
        picture = np.full((8, 8, 3), [255 * (i % 2), 0, 255 * (i % 3 == 0)], np.uint8)
        picture[: 1 + i % 5] = 0
        Image.fromarray(picture).save(path.parent / "captioned" / f"{i}.png")
    captions = (f"{i}.png\t{('dark', 'red')[i % 2]} {('short', 'tall')[i % 5 > 2]} pole\n" for i in range(40))
    (path.parent / "captioned" / "captions.tsv").write_text("".join(captions))
    return str(path)


def quiet(_):
    pass


def begin(name, folder, small_text, steps=10, **changes):
    beside = Path(small_text).parent
    if name == "prior" and not (base := beside / "vqvae").exists():
        begin("vqvae", base, small_text)
    more = {
        "prior": {"begun_from": str(beside / "vqvae")},
        "gpt": {"data": small_text},
        "pix2pix": {"data": str(beside / "pairs")},
        "text2image-gan": {"data": str(beside / "captioned")},
    }.get(name, {})
    return train(name, folder, {**TINY[name], **more, "steps": steps, **changes}, progress=False, say=quiet)


def resume(name, folder, **changes):
    return train(name, folder, changes, resume=True, progress=False, say=quiet)


def content(folder):
    """Every file of a run as bytes; of the metrics all but the seconds."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    files["metrics.jsonl"] = [
        {k: v for k, v in row.items() if k != "seconds"} for row in map(json.loads, files["metrics.jsonl"].splitlines())
    ]
    return files


def assert_same(a, b):
    a, b = content(a), content(b)
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name] == b[name], name


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


# ---------------------------------------------------------------------------------------------------------------------
# Runs, whole and interrupted
# ---------------------------------------------------------------------------------------------------------------------


FIRST = {r.family.name: r.name for r in reversed(RECIPES.values())}.values()  # the first recipe of each family


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_leaves_its_folder(name, tmp_path, small_text):
    outcome = begin(name, tmp_path / "run", small_text)
    folder = tmp_path / "run"
    assert (outcome.step, outcome.steps, outcome.signal) == (10, 10, None)
    assert json.loads((folder / "config.json").read_text())["recipe"]["name"] == name
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [2, 4, 5, 6, 8, 10]
    assert len(list((folder / "samples").iterdir())) == 2
    assert Image.open(io.BytesIO((folder / "curves.png").read_bytes())).size[0] > 300
    run = open_run(folder)
    assert run.step == 10 and not run.model.training and recipes.to_json(run.recipe)["model"] == run.recipe.model
    if name not in FIRST:  # recipes of one family are scored alike
        return
    found = scores(run)
    assert all(np.isfinite(value) for value in found.values())
    assert {
        "gan": "frechet_distance",
        "toy-gan": "modes",
        "toy-flow": "modes",
        "cgan": "frechet_distance",
        "vae": "elbo",
        "cvae": "elbo",
        "pix2pix": "sharpness",
        "text2image": "frechet_distance",
        "vqvae": "error",
        "flow": "loss_1",
        "prior": "nats_per_code",
        "gpt": "bits_per_byte",
    }[run.recipe.family.name] in found
    assert scores(run) == found


@pytest.mark.parametrize("name", ["gan", "vae", "gpt"])
@pytest.mark.parametrize("where", ["advance", "save_checkpoint", "write_whole", "sync"])
def test_killed_anywhere_it_ends_where_the_uninterrupted_run_ends(name, where, tmp_path, small_text, monkeypatch):
    begin(name, tmp_path / "whole", small_text)
    owner, attribute = {
        "advance": (loop.State, "advance"),
        "save_checkpoint": (loop, "save_checkpoint"),
        "write_whole": (loop, "write_whole"),
        "sync": (loop.MetricsLog, "sync"),
    }[where]
    real = getattr(owner, attribute)
    after = 0
    for cut in range(1, 40):  # die at the first call, then, resumed, at the second, …
        calls = iter(range(1, 1000))

        def dies(*args, cut=1 + cut % 3, calls=calls, **kwargs):
            if next(calls) == cut:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, dies)
        try:
            if (tmp_path / "cut" / "config.json").exists():
                resume(name, tmp_path / "cut")
            else:
                begin(name, tmp_path / "cut", small_text)
            break
        except Killed:
            after = cut
            monkeypatch.setattr(owner, attribute, real)
            if cut > 12:
                resume(name, tmp_path / "cut")
                break
    assert after > 2
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_longer_run_is_extended(tmp_path, small_text):
    begin("vae", tmp_path / "short", small_text, final=1.0, warmup=0)
    assert resume("vae", tmp_path / "short").step == 10
    resume("vae", tmp_path / "short", steps=15)
    begin("vae", tmp_path / "long", small_text, steps=15, final=1.0, warmup=0)
    assert_same(tmp_path / "short", tmp_path / "long")
    with pytest.raises(TrainingError, match="already at step 15"):
        resume("vae", tmp_path / "short", steps=12)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 6), (1, 28, 28), (4, 60, 50), (2, 5, 5)])
def test_images_cut_from_a_sheet_are_those_it_was_made_of(shape):
    x = np.random.default_rng(0).integers(0, 256, (9, *shape)) / 255
    shown = x[:, :3] if shape[0] >= 3 else x[:, :1]
    for columns in (3, 4, 10):
        back = pictures.cut(pictures.grid(x, columns), columns, shape[1:])
        np.testing.assert_array_equal(back[:9], shown)
        assert len(back) % columns == 0 and not back[9:].any()


def test_the_film_strip_is_the_kept_samples_row_by_row(tmp_path, small_text):
    """Up to ten of the steps, evenly spread, and of each the first pictures; whatever later steps left behind is not shown."""
    begin("cgan", tmp_path / "run", small_text, steps=7, sample_every=3)
    resume("cgan", tmp_path / "run", steps=39)
    kept = [*range(3, 40, 3), 7]  # the last of the short run too
    assert {int(path.stem) for path in (tmp_path / "run/samples").iterdir()} == set(kept)
    film = np.asarray(Image.open(tmp_path / "run/film.png"))
    rows = [sorted(kept)[round(i * 13 / 9)] for i in range(10)]
    strip = []
    for step in rows:
        sheet = np.asarray(Image.open(tmp_path / f"run/samples/{step:06d}.png"))  # 8 × 8 digits, 6 times as large
        strip.append(pictures.grid(pictures.cut(sheet, 8, (8, 8))[:10], 10)[: 9 * 6])
    strip = np.concatenate([*strip, np.zeros((6, 91 * 6), np.uint8)])
    margin = film.shape[1] - strip.shape[1]
    np.testing.assert_array_equal(film[:, margin:], strip)
    printed = film[:540, :margin].reshape(10, 54, margin)
    assert (printed > 100).any((1, 2)).all(), "a number before each row"
    assert len({number.tobytes() for number in printed}) == 10

    (tmp_path / "run/samples/000099.png").write_bytes((tmp_path / "run/samples/000003.png").read_bytes())
    (tmp_path / "run/samples/seed-3.png").write_bytes(b"")
    resume("cgan", tmp_path / "run", steps=40)
    before = np.asarray(Image.open(tmp_path / "run/film.png"))
    assert before.shape == film.shape and (before[-60:, margin:] != film[-60:, margin:]).any()

    report.page(tmp_path / "index.html", [(open_run(tmp_path / "run"), {})])
    shown = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert base64.b64encode((tmp_path / "run/film.png").read_bytes()).decode() in shown and "step 3<" not in shown
    (tmp_path / "run/film.png").unlink()  # as in a run of an older version
    report.page(tmp_path / "index.html", [(open_run(tmp_path / "run"), {})])
    assert "step 3<" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_training_does_not_depend_on_how_often_it_is_looked_at(tmp_path, small_text):
    begin("gan", tmp_path / "often", small_text, sample_every=1, save_every=1, log_every=1)
    begin("gan", tmp_path / "seldom", small_text, sample_every=100, save_every=100, log_every=100)
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.safetensors") for name in ("often", "seldom"))
    for name in a["model"]:
        np.testing.assert_array_equal(a["model"][name], b["model"][name])
    assert a["random"] == b["random"]


def test_what_a_kill_leaves_behind_is_passed_over(tmp_path, small_text):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.json.tmp").write_bytes(b'{"half')
    begin("vae", folder, small_text, steps=7)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "seconds": 1, "loss": 3}\n{"step": 9, "sec')
    (folder / ".checkpoint.safetensors.tmp").write_bytes(b"half")
    (folder / "samples" / ".000010.png.tmp").write_bytes(b"half")
    resume("vae", folder, steps=10)
    begin("vae", tmp_path / "whole", small_text, steps=10)
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [2, 4, 5, 6, 7, 8, 10]
    assert not list(folder.rglob("*.tmp"))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, small_text, monkeypatch):
    real = loop.State.advance

    def breaks(self, batch):
        losses = real(self, batch)
        return {**losses, "kl": np.inf} if self.step == 8 else losses

    monkeypatch.setattr(loop.State, "advance", breaks)
    with pytest.raises(Diverged, match="step 8: kl is inf.*step 6 is kept"):
        begin("vae", tmp_path / "run", small_text)
    assert open_run(tmp_path / "run").step == 6
    with pytest.raises(Diverged, match=r"step \d+: .* try --set lr=0.001 instead of 30, in another folder"):
        begin("vae", tmp_path / "wild", small_text, lr=30, warmup=100, steps=100)
    assert 0 < open_run(tmp_path / "wild").step < 100


@pytest.mark.parametrize("number, name", [(signal.SIGINT, "vae"), (signal.SIGTERM, "gpt")])
def test_a_signal_lets_the_step_finish_and_saves(number, name, tmp_path, small_text, monkeypatch):
    real = loop.State.advance

    def interrupted(self, batch):
        if self.step == 3:
            signal.raise_signal(number)
        return real(self, batch)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop.State, "advance", interrupted)
    outcome = begin(name, tmp_path / "run", small_text)
    assert (outcome.step, outcome.signal) == (4, number) and open_run(tmp_path / "run").step == 4
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    monkeypatch.setattr(loop.State, "advance", real)
    resume(name, tmp_path / "run")
    begin(name, tmp_path / "whole", small_text)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path, small_text, monkeypatch):
    """As SIGINT is in the background of a script: Ctrl-C is then meant for another program."""
    real = loop.State.advance
    monkeypatch.setattr(loop.State, "advance", lambda self, batch: (signal.raise_signal(signal.SIGINT), real(self, batch))[1])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        outcome = begin("vae", tmp_path / "run", small_text)
        assert outcome.signal is None and outcome.step == outcome.steps
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_kill_9_at_random_moments(tmp_path, small_text):
    changes = {**TINY["vae"], "steps": 200, "save_every": 7, "sample_every": 50}
    begin("vae", tmp_path / "whole", small_text, **changes)
    code = (
        "import json, sys; from scratchgen.training import pictures, train\n"
        "pictures.curves = lambda panels, rows: json.dumps([row['step'] for row in rows]).encode()\n"
        f"train('vae', sys.argv[1], {changes!r}, resume=True, progress=False)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cut")]
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not (tmp_path / "cut" / "config.json").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "whole", tmp_path / "cut")


# ---------------------------------------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------------------------------------


def tree():
    rng = np.random.default_rng(0)
    return {
        "model": {"a.weight": rng.standard_normal((3, 4)).astype(np.float32), "n": np.array(3), "none": np.zeros((0, 2))},
        "state": {0: {"step": 4, "betas": (0.9, 0.999)}, 1: [True, None, 1e-300, 2**127, float("inf")]},
        "strided": rng.standard_normal((4, 6))[::2, ::3],
        "text": 'é\n"\u2028\\"sha256\\": \\"' + "0" * 64,
    }


def test_a_checkpoint_returns_what_was_saved(tmp_path):
    save_checkpoint(tmp_path / "c", tree())
    found = load_checkpoint(tmp_path / "c")
    assert found["state"] == tree()["state"] and type(found["state"][0]["betas"]) is tuple and found["text"] == tree()["text"]
    for a, b in [*zip(found["model"].values(), tree()["model"].values(), strict=True), (found["strided"], tree()["strided"])]:
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    first = (tmp_path / "c").read_bytes()
    save_checkpoint(tmp_path / "c", tree())
    assert (tmp_path / "c").read_bytes() == first
    with pytest.raises(TypeError, match="a/b is a object"):
        save_checkpoint(tmp_path / "c", {"a": {"b": object()}})
    assert (tmp_path / "c").read_bytes() == first


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c"
    save_checkpoint(path, tree())
    raw = path.read_bytes()
    damaged = [raw[:cut] for cut in (0, 7, 8, 100, len(raw) // 2, len(raw) - 1)] + [raw + b"\0"]
    for at in range(len(raw)):  # every byte, header and checksum included
        flipped = bytearray(raw)
        flipped[at] ^= 1 << at % 8
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(TrainingError, match="damaged"):
            load_checkpoint(path)
    with pytest.raises(TrainingError, match="expected the folder of a run"):
        load_checkpoint(tmp_path / "elsewhere" / "c")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, "old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fails(*_):
                raise OSError("no space")

            patch.setattr(os, name, fails)
            with pytest.raises(OSError):
                write_whole(path, "new")
        assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_not_trained_in_twice(tmp_path, small_text):
    begin("vae", tmp_path / "run", small_text, steps=4)
    loop.write_whole(
        tmp_path / "run" / "config.json", (tmp_path / "run" / "config.json").read_text().replace('"steps": 4', '"steps": 6')
    )
    with loop.locked(tmp_path / "run"), pytest.raises(TrainingError, match="another process"):
        resume("vae", tmp_path / "run")
    assert resume("vae", tmp_path / "run").step == 6


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "config.json").write_text('{"recipe": []}'), "config.json"),
        (lambda f: (f / "config.json").unlink(), "no run"),
        (
            lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('"seed": 0', '"seed": 1')),
            "different runs",
        ),
        (lambda f: (f / "checkpoint.safetensors").write_bytes((f / "checkpoint.safetensors").read_bytes()[:-4]), "damaged"),
    ],
)
def test_a_harmed_folder_is_refused(harm, words, tmp_path, small_text):
    begin("vae", tmp_path / "run", small_text, steps=4)
    harm(tmp_path / "run")
    with pytest.raises(TrainingError, match=words):
        resume("vae", tmp_path / "run", steps=8)


def test_what_cannot_be_resumed(tmp_path, small_text):
    path = tmp_path / "text.txt"
    path.write_text(Path(small_text).read_text())
    begin("gpt", tmp_path / "run", small_text, steps=4, data=str(path))
    for changes, words in [({"lr": 0.5}, "lr = 0.001"), ({"seed": 3}, "seed = 0"), ({"n_layer": 2}, "n_layer = 1")]:
        with pytest.raises(TrainingError, match=words):
            resume("gpt", tmp_path / "run", **changes)
    with pytest.raises(TrainingError, match="recipe 'gpt', not of 'vae'"):
        resume("vae", tmp_path / "run")
    with pytest.raises(TrainingError, match="already holds a run"):
        begin("gpt", tmp_path / "run", small_text)
    path.write_text(path.read_text() + "?")
    with pytest.raises(TrainingError, match="not those the run was begun with"):
        resume("gpt", tmp_path / "run", steps=9)


def test_what_cannot_begin_leaves_nothing(tmp_path, small_text):
    for changes in ({"batch_size": 10**6}, {"data": small_text}, {"hidden": 0}, {"network": "x"}):
        with pytest.raises((TrainingError, data.DataError)):
            begin("vae", tmp_path / "run", small_text, **changes)
        assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Recipes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_a_recipe_can_be_set(name):
    found = recipe(name)
    own = {f.name for f in dataclasses.fields(recipes.Recipe)}
    assert not own & set(found.model), "a setting of the model has the name of one of the recipe"
    known = settings(found)
    assert adjust(found, {key: str(value) for key, value in known.items()}) == found
    assert recipes.from_json(json.loads(json.dumps(recipes.to_json(found)))) == found


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("vae", {"latnet": 3}, "no setting 'latnet' .did you mean 'latent'"),
        ("vae", {"shape": "1"}, "shape: the data decide"),
        ("gpt", {"vocab_size": 3}, "the data decide"),
        ("vae", {"latent": "2.5"}, "latent: expected a whole number of at least 1, got '2.5'"),
        ("vae", {"latent": 2.5}, "latent: expected a whole number"),
        ("vae", {"latent": True}, "latent: expected a whole number"),
        ("vae", {"lr": "nan"}, "lr: expected a finite number"),
        ("vae", {"lr": "-1"}, "lr: expected a finite number"),
        ("vae", {"lr": "1e999"}, "lr: expected a finite number"),
        ("gpt", {"bias": "maybe"}, "bias: expected true or false"),
        ("vae", {"network": ""}, "network: expected a text"),
        ("vae", {"steps": 0}, "steps: expected a whole number of at least 1"),
        ("vae", {"ema": 1}, "ema: expected"),
        ("vae", {"final": 2}, "final: expected"),
        ("vae", {"name": "x"}, "no setting 'name'"),
    ],
)
def test_settings_that_are_refused(name, changes, words):
    with pytest.raises(TrainingError, match=words):
        adjust(recipe(name), changes)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and pages
# ---------------------------------------------------------------------------------------------------------------------


def test_a_grid_shows_each_image_in_its_row_and_column():
    x = np.linspace(0, 1, 5 * 3 * 2 * 4, dtype=np.float32).reshape(5, 3, 2, 4)
    sheet = pictures.grid(x, 2, scale=3, gap=1)
    assert sheet.shape == ((3 * 3 + 1) * 3, (2 * 5 + 1) * 3, 3)
    for i, image in enumerate(x):
        top, left = 3 * (1 + i // 2 * 3), 3 * (1 + i % 2 * 5)
        shown = sheet[top : top + 6 : 3, left : left + 12 : 3]
        np.testing.assert_array_equal(shown, np.rint(image * 255).transpose(1, 2, 0))
    assert sheet[-3:, :, :].max() == 0 and sheet[:, -15:][-9:].max() == 0
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(pictures.png(sheet)))), sheet)
    assert pictures.grid(np.ones((1, 1, 8, 8)), 1).shape == (60, 60)
    assert pictures.grid(np.ones((1, 2, 8, 8)), 1).ndim == 2


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.images, self.links, self.tags = [], [], [], set()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        if tag not in ("meta", "link", "img", "path", "circle", "mspace", "br"):
            self.open.append(tag)
        self.links += [attributes[key] for key in ("src", "href", "srcset", "xlink:href", "action") if key in attributes]
        if tag == "img":
            assert attributes["alt"]
            self.images.append(attributes["src"])

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_stands_alone(tmp_path, small_text, monkeypatch):
    import base64

    monkeypatch.setattr(demo, "TOUR", {name: {"steps": 10} for name in ("gan", "vae", "gpt")})
    tiny = {name: {**TINY[name]} for name in ("gan", "vae", "gpt")}
    tiny["gpt"]["data"] = small_text
    said = []
    assert demo.run(tmp_path, changes=tiny, progress=False, say=said.append) is None
    assert str(tmp_path / "index.html") in said[-1]
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert not page.open, "every element is closed"
    assert {"math", "svg", "img", "table", "pre"} <= page.tags and not {"script", "iframe", "object"} & page.tags
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "http" not in text and "url(" not in text and "@import" not in text and str(tmp_path) not in text
    assert len(page.images) > 8
    for image in page.images:
        assert Image.open(io.BytesIO(base64.b64decode(image.removeprefix("data:image/png;base64,")))).size[0] > 10
    # a second call finds all done and writes the same page
    before = text
    assert demo.run(tmp_path, changes=tiny, progress=False, say=quiet) is None
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == before


def test_equations_are_mathml():
    assert report._math("𝔼_{x∼p_data} K^⊤ ∏__i √d 1") == (
        '<math display="block"><msub><mi>𝔼</mi><mrow><mi>x</mi><mo>∼</mo>'
        "<msub><mi>p</mi><mrow><mi>data</mi></mrow></msub></mrow></msub>"
        "<msup><mi>K</mi><mrow><mo>⊤</mo></mrow></msup><munder><mo>∏</mo><mrow><mi>i</mi></mrow></munder>"
        "<msqrt><mi>d</mi></msqrt><mn>1</mn></math>"
    )
