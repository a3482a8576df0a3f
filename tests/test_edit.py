"""Edits of pictures by their codes: what each writes, what each refuses, and the pages in a browser."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scratchgen import data
from scratchgen.__main__ import main
from scratchgen.models import latent
from scratchgen.training import open_run, train
from scratchgen.training.edit import FRAMES, SIDE, Options, judge
from tests.strategies import DEEP


@pytest.mark.parametrize("way", latent.WAYS)
def test_ways_begin_and_end_where_they_should(way):
    a, b = np.random.default_rng(0).standard_normal((2, 3, 5))
    path = latent.WAYS[way](a, b, 7)
    assert path.shape == (3, 7, 5)
    np.testing.assert_allclose(path[:, 0], a, atol=1e-12)
    np.testing.assert_allclose(path[:, -1], b, atol=1e-12)


def test_an_arc_keeps_its_length_and_its_pace_and_a_line_does_not():
    a, b = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    path = latent.arc(a, b, 5)
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), 1)
    np.testing.assert_allclose(np.degrees(np.arccos(path[:, 0])), [0, 22.5, 45, 67.5, 90], atol=1e-9)
    assert np.linalg.norm(latent.line(a, b, 3)[1]) == pytest.approx(0.5**0.5)
    np.testing.assert_allclose(latent.arc(a, 2 * a, 3)[1], 1.5 * a)  # parallel: the line
    assert np.isfinite(latent.arc(0 * a, b, 3)).all()


def test_an_analogy_moves_the_mean_of_one_class_to_that_of_the_other():
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((60, 4)), np.arange(60) % 3
    means = latent.class_means(z, y, 4)
    assert np.isnan(means[3]).all()
    moved = latent.analogy(z[y == 0], means[0], means[2])
    np.testing.assert_allclose(moved.mean(0), means[2], atol=1e-12)


def test_the_plane_is_where_codes_are_spread_the_most():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((400, 5)) * [0.1, 3.0, 0.1, 2.0, 0.1] + 1
    plane = latent.plane(z)
    np.testing.assert_allclose(abs(plane.axes[[0, 1], [1, 3]]), 1, atol=0.01)
    uv = rng.standard_normal((3, 2))
    np.testing.assert_allclose(plane.coordinates(plane.points(uv)), uv, atol=1e-12)
    at = latent.grid(plane.coordinates(z), 9)
    assert at.shape == (9, 9, 2) and (np.diff(at[0, :, 0]) > 0).all() and (np.diff(at[:, 0, 1]) < 0).all()
    inside = (plane.coordinates(z)[:, 0] < at[0, 4, 0]).mean()
    assert inside == pytest.approx(0.5, abs=0.06)
    for d in (1, 2):
        assert latent.plane(z[:, :d]).axes.shape == (2, d)


SMALL = {"steps": 3, "sample_every": 3, "save_every": 3, "eval_batches": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit") / "vae"
    train("vae", folder, {"hidden": 16, "latent": 3, **SMALL}, say=lambda text: None, progress=False)
    return folder


@pytest.fixture(scope="module")
def cvae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit") / "cvae"
    train("cvae", folder, {"data": "digits", "hidden": 16, "latent": 3, **SMALL}, say=lambda text: None, progress=False)
    return folder


def size(path):
    with Image.open(path) as picture:
        return picture.size


def cells(n, side=8, scale=6):
    """The length in pixels of n pictures of 8 × 8 side by side, each enlarged 6 times, with gaps around."""
    return (n * (side + 1) + 1) * scale


def run(*words):
    return main(["edit", *map(str, words)])


@pytest.mark.parametrize(
    ("how", "words", "columns", "rows"),
    [
        ("reconstruct", [], 8, 2),
        ("reconstruct", ["3", "5", "7"], 3, 2),
        ("interpolate", ["3", "5", "--steps", "6", "--way", "spherical"], 8, 1),
        ("interpolate", [], 14, 4),
        ("arithmetic", ["--minus", "3", "--plus", "8"], 7, 8),
        ("arithmetic", ["11", "--minus", "3", "--plus", "8", "--amount", "2"], 7, 1),
        ("traverse", ["3"], FRAMES, 3),
    ],
)
def test_each_edit_writes_its_picture(how, words, columns, rows, vae, tmp_path, capsys):
    out = tmp_path / f"{how}.png"
    assert run(vae, how, *words, "--out", out) == 0
    assert str(out) in capsys.readouterr().out
    assert size(out) == (cells(columns), cells(rows))


def test_transfer_is_offered_where_the_model_is_told_classes(cvae, vae, tmp_path, capsys):
    assert run(cvae, "transfer", "3", "5", "--out", tmp_path / "t.png") == 0
    assert size(tmp_path / "t.png") == (cells(11), cells(2))
    assert run(cvae, "transfer", "3", "--to", "7", "--out", tmp_path / "t.png") == 0
    assert size(tmp_path / "t.png") == (cells(2), cells(1))
    assert run(vae, "transfer") == 2
    assert "the recipe 'vae' cannot be asked to transfer; expected reconstruct, interpolate" in capsys.readouterr().err


def test_a_judge_counts_what_a_classifier_takes_edits_for(vae, cvae, tmp_path, capsys):
    """Three steps teach a decoder nothing, so that little is as asked"""
    ask = ["--judge", 40, "--out", tmp_path / "o.png"]
    assert run(vae, "arithmetic", "--minus", "3", "--plus", "8", *ask) == 0
    assert run(cvae, "transfer", *ask) == 0
    told = capsys.readouterr().out
    assert re.search(r"3 − 3 \+ 8: a classifier takes \d of 28 for what was asked", told)  # all the held-out threes there are
    assert re.search(r"the style of one class as another class: a classifier takes 1?\d of 40 for what", told)
    assert run(vae, "traverse", *ask) == 2
    assert "--judge: traverse asks for no class; expected one of arithmetic, transfer" in capsys.readouterr().err


def test_edits_that_are_right_are_judged_so(cvae, vae, monkeypatch):
    """Decoders that draw a real picture of the class of the nearest mean, or of the class that is told"""
    opened, told = open_run(vae), open_run(cvae)
    x, y = data.load("digits").x, data.load("digits").y
    means = latent.class_means(x.reshape(len(x), -1), y, 10)
    of = ((x.reshape(len(x), 1, -1) - means) ** 2).sum(2).argmin(0)  # the picture nearest to the mean of each class
    monkeypatch.setattr(type(told.model), "decode", lambda self, z, y=None: x[of[np.broadcast_to(y, len(z))]])
    assert "takes 50 of 50" in judge(told, "transfer", Options(), 50)
    assert "takes 50 of 50" in judge(told, "transfer", Options(to="7"), 50)
    monkeypatch.setattr(type(opened.model), "encode", lambda self, x, y=None: x.reshape(len(x), -1))

    def nearest(self, z, y=None):
        return x[of[((z[:, None] - means) ** 2).sum(2).argmin(1)]]

    monkeypatch.setattr(type(opened.model), "decode", nearest)
    sentence = judge(opened, "arithmetic", Options(minus="3", plus="8"), 20)
    found = int(re.search(r"takes (\d+) of 20", sentence)[1])
    assert sentence.startswith("3 − 3 + 8: ") and found >= 17
    backwards = judge(opened, "arithmetic", Options(minus="3", plus="8", amount=0.0), 20)
    assert int(re.search(r"takes (\d+) of 20", backwards)[1]) <= 5


def test_pictures_of_ones_own(vae, cvae, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    assert run(vae, "interpolate", a, b, "--out", tmp_path / "o.png") == 0
    assert size(tmp_path / "o.png") == (cells(14), cells(1))
    assert run(cvae, "reconstruct", a, "--out", tmp_path / "o.png") == 2
    assert "--label: the model is told classes, so tell that of the picture: 0, 1, 2" in capsys.readouterr().err
    assert run(cvae, "transfer", a, "--label", "4", "--out", tmp_path / "o.png") == 0


def test_the_same_edit_gives_the_same_bytes_in_the_folder_of_the_run(vae):
    assert run(vae, "map") == 0
    first = {path.name: path.read_bytes() for path in (vae / "edits").iterdir()}
    assert set(first) == {"map.png", "map.html"}
    assert run(vae, "map") == 0
    assert {path.name: path.read_bytes() for path in (vae / "edits").iterdir()} == first


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["interpolate", "3"], "interpolate: expected two pictures, got one."),
        (["reconstruct", "99999"], "picture 99999: expected a number below 359, the number of held-out pictures."),
        (["reconstruct", "nowhere.png"], "nowhere.png"),
        (["arithmetic", "--minus", "3"], "--plus: expected one of 0, 1, 2"),
        (["arithmetic", "--minus", "3", "--plus", "x"], "expected one of 0, 1, 2"),
        (["interpolate", "--way", "winding"], "--way: expected linear or spherical, got 'winding'."),
        (["dream"], "invalid choice: 'dream'"),
    ],
)
def test_what_cannot_be_edited_is_told_in_a_sentence(words, says, vae, capsys):
    assert run(vae, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("scratchgen: ") and says in err and err.count("\n") == 1


def test_a_model_without_codes_is_told_so(tmp_path, capsys):
    train("gan", tmp_path / "gan", {"hidden": 8, **SMALL}, say=lambda text: None, progress=False)
    assert run(tmp_path / "gan", "map") == 2
    assert "the recipe 'gan' cannot be asked to map; it has no codes to edit." in capsys.readouterr().err


@pytest.mark.parametrize(("how", "pictures"), [("map", SIDE**2), ("traverse", 3 * FRAMES + 1)])
def test_a_page_holds_all_it_shows(how, pictures, vae, tmp_path):
    assert run(vae, how, "--out", tmp_path / "page.png") == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://|@import|fetch\(", page)
    content = json.loads(re.search(r"const D = (\{.*?\}), S = ", page)[1])
    assert (content["height"], content["width"]) == (8, 8)
    columns = content["side"]
    sheet = re.search(r'S = "data:image/png;base64,([^"]+)"', page)[1]
    with Image.open(io.BytesIO(base64.b64decode(sheet))) as picture:
        assert picture.size == (8 * columns, 8 * -(-pictures // columns))


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("how", ["map", "traverse"])
def test_a_page_runs_in_a_browser_without_a_network(how, vae, tmp_path):
    """Its script ends without an error, and shows a sprite: the style that it sets stands in the page afterwards."""
    assert run(vae, how, "--out", tmp_path / "page.png") == 0
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
         (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    shown = re.search(r'<div id="shown"[^>]*style="([^"]*)"', done.stdout)
    assert shown and "background-position" in shown[1], done.stderr[-500:]
    assert len(re.findall("<li style" if how == "map" else "<output>σ [0-9]", done.stdout)) == (10 if how == "map" else 3)
    assert Path(tmp_path / "page.html").stat().st_size < 2**20


# ---------------------------------------------------------------------------------------------------------------------
# At length: the pictures of the README, and what they are judged to be
# ---------------------------------------------------------------------------------------------------------------------

FORMULAS = (("Sneaker", "Ankle boot"), ("Pullover", "Trouser"), ("Sandal", "Ankle boot"))
TRIALS, SEED = 200, 0


@pytest.mark.skipif(not DEEP, reason="only in the deep run: SCRATCHGEN_DEEP=1")
def test_the_pictures_of_the_readme(tmp_path):
    """Of 200 held-out pictures moved by each formula, and of as many middles between two of a class, 80 % are as asked

    On the compiled kernels, since it takes minutes. SCRATCHGEN_PICTURES=pictures writes what the README shows into that folder.
    """
    where, run = Path(os.environ.get("SCRATCHGEN_PICTURES", tmp_path)).resolve(), str(tmp_path / "run")

    def said(*words):
        command = [sys.executable, "-m", "scratchgen", *map(str, words)]
        return subprocess.run(command, env={**os.environ, "SCRATCHGEN_KERNELS": "cpu"}, check=True, text=True, stdout=-1).stdout

    print(f"seed {SEED}", said("train", "vae-conv", "--seed", SEED, "--out", run, "--quiet").splitlines()[-1])
    asked = [["arithmetic", "--minus", minus, "--plus", plus] for minus, plus in FORMULAS]
    for i, words in enumerate([*asked, ["interpolate", "--steps", 9]]):
        out = where / f"{words[0]}.png" if i in (0, len(asked)) else tmp_path / "other.png"
        sentence = said("edit", run, *words, "--seed", SEED, "--judge", TRIALS, "--out", out).splitlines()[-1]
        print(sentence)
        found, of = map(int, re.search(r"takes (\d+) of (\d+) for", sentence).groups())
        assert of == TRIALS and found >= 0.8 * TRIALS, sentence
        assert out.stat().st_size < 100_000
