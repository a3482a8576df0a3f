"""Points of the plane: a GAN learns them, one picture shows data, samples and D's surface, and scores count the modes."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scratchgen as sg
from scratchgen import data, random
from scratchgen.__main__ import main
from scratchgen.models import gan, points
from scratchgen.models.family import Plane, lattice
from scratchgen.training import open_run, pictures, samples, scores
from scratchgen.training.media import MEDIA

SMALL = ["--set", "hidden=8", "--set", "batch_size=16", "--set", "sample_every=3", "--quiet"]


@pytest.fixture(autouse=True)
def _same_generator_afterwards():
    state = random.get_rng_state()
    yield
    random.set_rng_state(state)


# ---------------------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------------------


def test_pictures_are_moved_to_minus_one_and_one_bit_for_bit():
    model, x = gan.GAN(gan.GANConfig((1, 4, 4), hidden=4, latent=2)), np.random.default_rng(0).random((9, 1, 4, 4), np.float32)
    inside = model.inside(x)
    assert np.array_equal(inside.data, 2 * x - 1) and inside.dtype == np.float32
    assert np.array_equal(model.outside(inside).data, (inside.data + 1) / 2)


def test_points_are_moved_to_mean_0_and_variance_1_along_both_axes_alike():
    x = np.random.default_rng(0).normal((1000, -3), (4, 2), (500, 2)).astype(np.float32)
    centre, scale = points.standard(data.Points(x))
    model = gan.GAN(gan.GANConfig((2,), hidden=4, latent=2, centre=centre, scale=scale))
    inside = model.inside(x).data
    np.testing.assert_allclose(inside.mean(0), 0, atol=1e-4)
    assert (inside**2).mean() == pytest.approx(1, rel=1e-4) and inside.std(0)[0] > 1.5 * inside.std(0)[1]
    np.testing.assert_allclose(model.outside(model.inside(x)).data, x, rtol=1e-6, atol=1e-6)
    same = data.Points(np.full((3, 2), 5, np.float32))
    assert points.standard(same) == ((5.0, 5.0), 1.0), "points that are all the same have no scale"


def test_the_surface_is_what_d_makes_of_the_plane():
    sg.manual_seed(0)
    model = gan.GAN(gan.GANConfig((2,), hidden=8, latent=2, centre=(3.0, 1.0), scale=2.0)).eval()
    plane = gan.sample_points(model, {"square": (3.0, 1.0, 4.0)}, 7, np.random.default_rng(0))
    assert plane.x.shape == (7, 2) and plane.square == (3.0, 1.0, 4.0)
    side = len(plane.surface)
    step = 8 / side
    at = np.array([[3 - 4 + step / 2 + step * 5, 1 - 4 + step / 2 + step * 2]], np.float32)  # column 5, row 2, upwards
    expected = model.discriminator(sg.tensor((at - (3, 1)) / 2, dtype=np.float32)).item()
    assert plane.surface[2, 5] == pytest.approx(expected, rel=1e-4)


def test_lattice_by_hand():
    np.testing.assert_array_equal(lattice((1.0, 0.0, 2.0), 2), [[0, -1], [2, -1], [0, 1], [2, 1]])


def test_scores_of_the_data_themselves_are_those_of_the_data():
    train, test = (data.load("grid-25", split=split) for split in ("train", "test"))
    perfect = lambda n, rng: Plane(data.mixture("grid-25", n, seed=9)[0], (0, 0, 1))  # noqa: E731
    found = points.scores(data.Task(train, test, 1), {}, perfect, np.random.default_rng(0), print, None)
    assert found["n_fake"] == 2500
    assert found["modes"] == found["modes_hit"] == found["modes_real"] == 25
    for name, error in (("near", 0.01), ("reverse_kl", 0.01), ("density", 0.1), ("coverage", 0.05)):
        assert found[name] == pytest.approx(found[f"{name}_real"], abs=error), name
    collapsed = lambda n, rng: Plane(np.zeros((n, 2), np.float32), (0, 0, 1))  # noqa: E731
    found = points.scores(data.Task(train, test, 1), {}, collapsed, np.random.default_rng(0), print, None)
    assert (found["modes"], found["near"], found["reverse_kl"]) == (1, 1.0, pytest.approx(np.log(25)))


def test_few_points_without_modes_have_few_scores():
    few, said = data.Points(np.eye(2, dtype=np.float32)), []
    draw = lambda n, rng: Plane(np.zeros((n, 2), np.float32), (0, 0, 1))  # noqa: E731
    assert points.scores(data.Task(few, few, 1), {}, draw, np.random.default_rng(0), said.append, None) == {
        "n_real": 2,
        "n_fake": 2,
    }
    assert said == ["no density and coverage: these need 4 points of each kind, and there are 2."]


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def test_a_picture_shows_each_thing_where_it_is():
    """A sample is red in the lower left, a real point blue in the upper right, and the surface rises towards the right."""
    surface = np.tile(np.arange(16.0), (16, 1))
    shown = Plane(np.full((1, 2), -1.0), (0.0, 0.0, 2.0), np.full((1, 2), 1.0), surface)
    picture = np.asarray(Image.open(io.BytesIO(pictures.plane(shown))).convert("RGB")).astype(int)
    side = picture.shape[1]
    red, blue = (picture[:side, :, a] - picture[:side, :, b] for a, b in ((0, 2), (2, 0)))
    row, column = np.unravel_index(red.argmax(), red.shape)
    assert abs(row - 0.75 * side) < 0.03 * side and abs(column - 0.25 * side) < 0.03 * side
    row, column = np.unravel_index(blue.argmax(), blue.shape)
    assert abs(row - 0.25 * side) < 0.03 * side and abs(column - 0.75 * side) < 0.03 * side
    assert blue[side // 2, int(0.97 * side)] > 10 and red[side // 2, int(0.03 * side)] > 10


def test_arrows_point_along_the_field_whatever_its_length():
    """Of the middle arrow: its length lies along the field, and its head, which is wider than its shaft, at the end of it."""
    corner = np.full((1, 2), -1.95)

    def ink(direction):
        shown = Plane(corner, (0.0, 0.0, 2.0), arrows=np.tile(direction, (9, 1)))
        picture = np.asarray(Image.open(io.BytesIO(pictures.plane(shown))).convert("RGB")).astype(int)
        side = picture.shape[1]
        part = slice(side // 2 - side // 8, side // 2 + side // 8)  # the lattice of 3 × 3 has its middle point there
        return picture[part, part].max(2) < 240

    def wide(ink, axis):
        return np.ptp(np.flatnonzero(ink.any(axis)))

    right, left, up = ink((1.0, 0.0)), ink((-1.0, 0.0)), ink((0.0, 1.0))
    assert wide(right, 0) > 2 * wide(right, 1) and wide(up, 1) > 2 * wide(up, 0)
    head = lambda ink, axis: ink.sum(axis).argmax() / ink.shape[axis]  # noqa: E731
    assert head(right, 0) > 0.55 > 0.45 > head(left, 0) and head(up, 1) < 0.45, "rows of a picture go down"
    np.testing.assert_array_equal(ink((1e4, 0.0)), right)
    assert wide(ink((0.0, 0.0)), 0) < wide(right, 0) / 4, "where nothing moves, a dot"


def test_the_film_strip_shows_the_pictures_of_some_steps_from_left_to_right(tmp_path):
    """Eight pictures, ever brighter: six of them, the first and the last among these."""
    grey = [30 * k for k in range(8)]
    kept = [(1000 * k, tmp_path / f"{k}.png") for k in range(8)]
    for (_, path), level in zip(kept, grey, strict=True):
        Image.new("RGB", (100, 110), (level, 0, 0)).save(path)
    strip = MEDIA["points"].film(kept, None)
    picture = np.asarray(Image.open(io.BytesIO(strip)).convert("RGB")).astype(int)
    row = picture[picture.shape[0] * 2 // 3]
    seen = [int(np.median(part[:, 0])) for part in np.array_split(row, 6)]
    np.testing.assert_allclose(seen, [grey[k] for k in (0, 1, 3, 4, 6, 7)], atol=3)


def test_points_are_written_as_numbers_that_are_read_back():
    plane = Plane(np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32), (0, 0, 1))
    medium = MEDIA["points"]
    assert np.array_equal(np.load(io.BytesIO(medium.others[".npz"](plane)))["x"], plane.x)
    lines = medium.others[".csv"](plane).decode().splitlines()
    assert lines[0] == "x,y" and np.array_equal(np.array([line.split(",") for line in lines[1:]], np.float32), plane.x)
    assert medium.finite(plane) and not medium.finite(plane._replace(x=np.array([[0, np.inf]])))


def test_a_run_of_ones_own_points(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", x=np.random.default_rng(0).normal((50, -20), 0.1, (200, 2)))
    assert main(["train", "toy-gan", "--data", "own.npz", "--steps", "6", *SMALL]) == 0
    assert sorted(file.name for file in Path("runs/toy-gan/samples").iterdir()) == ["000003.png", "000006.png"]
    assert main(["sample", "runs/toy-gan", "-n", "300", "--out", "made.csv"]) == 0
    assert main(["sample", "runs/toy-gan", "-n", "300", "--out", "made.npz"]) == 0
    made = data.load("made.npz")
    assert len(made) == 240 and np.abs(made.x - (50, -20)).max() < 1, "G begins near the data, wherever these are"
    assert len(Path("made.csv").read_text().splitlines()) == 301
    assert main(["sample", "runs/toy-gan", "--out", "made.gif"]) == 2
    assert "expected the name of a .png or .npz or .csv file, got 'made.gif'" in capsys.readouterr().err
    assert main(["eval", "runs/toy-gan"]) == 0
    found = json.loads(Path("runs/toy-gan/eval.json").read_text())["scores"]
    assert {"n_real", "n_fake", "density", "coverage"} <= set(found) and "modes" not in found
    assert main(["page", "runs/toy-gan", "--out", "shown/page.html"]) == 0
    page = Path("shown/page.html").read_text(encoding="utf-8")
    assert (
        "<b>losses</b>" in page and "The smallest game" in page and page.count('class="plot"') == 3 and 'class="film"' in page
    )
    assert main(["page", "runs/toy-gan", "--out", "shown"]) == 2
    assert main(["train", "toy-gan", "--data", "digits", "--out", "x"]) == 2
    assert "learns from points, and this is images" in capsys.readouterr().err
    assert main(["train", "toy-gan", "--set", "network=dcgan", "--out", "x"]) == 2
    assert "network: the data decide it" in capsys.readouterr().err


def test_the_smallest_game_is_drawn_by_one_command(tmp_path, capsys):
    assert main(["dirac", "--out", str(tmp_path / "a" / "dirac.png")]) == 0
    said = capsys.readouterr().out
    for words in ("± 0.5 i", "-0.25 ± 0.433 i", "1.0050", "not smooth", "dirac.png"):
        assert words in said
    assert Image.open(io.BytesIO((tmp_path / "a" / "dirac.png").read_bytes())).size[0] > 1000


@pytest.mark.deep
def test_the_relativistic_game_finds_all_modes(tmp_path):
    """25 of 25 modes of the grid, most samples within 3σ; the same of another seed is in the README."""
    assert main(["train", "toy-gan", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    found = scores(open_run(tmp_path / "run"))
    assert found["modes"] == 25 and found["near"] > 0.5
    assert samples(open_run(tmp_path / "run"), 10, 0).x.shape == (10, 2)
