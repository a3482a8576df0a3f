"""The families at equal seconds: how many steps fit, what is written, and that a stopped comparison goes on."""

import dataclasses
import json

import pytest

from scratchgen.training import RECIPES, TrainingError, compare
from scratchgen.training.compare import Entrant, Stage


def quiet(text):
    pass


def small(name, **model):
    fast = {"batch_size": 8, "eval_batches": 1}
    return dataclasses.replace(RECIPES[name], model={**RECIPES[name].model, **model}, **fast)


TABLE = {
    **RECIPES,
    "vqvae": small("vqvae", hidden=4, codes=4, dim=2),
    "prior": small("prior", n_layer=1, n_head=1, n_embd=8),
}
CODES = Entrant("codes", (Stage("vqvae", 0.5), Stage("prior", 0.5)))


def test_a_family_is_trained_scored_and_shown_and_what_is_there_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_steps", lambda stage, changes, seconds, table: 3)
    told = []
    how = {"name_or_path": "digits", "minutes": 0.01, "table": TABLE, "only": (CODES,), "progress": False}
    assert compare.run(tmp_path / "c", say=told.append, **how) is None
    found = json.loads((tmp_path / "c" / "compare.json").read_text())["families"]
    assert [(f["family"], f["steps"]) for f in found] == [("codes", [3, 3])]
    assert found[0]["scores"]["frechet_distance_restored"] > 0
    assert found[0]["samples_per_second"] > 0
    assert "Fréchet distance" in told[-1] and "codes" in told[-1]
    assert (tmp_path / "c" / "compare.png").stat().st_size > 1000
    assert "Learned prior" in (tmp_path / "c" / "index.html").read_text(encoding="utf-8")
    kept = (tmp_path / "c" / "1-vqvae" / "checkpoint.safetensors").read_bytes()
    (tmp_path / "c" / "compare.json").unlink()
    assert compare.run(tmp_path / "c", say=quiet, **how) is None
    assert (tmp_path / "c" / "1-vqvae" / "checkpoint.safetensors").read_bytes() == kept
    assert (tmp_path / "c" / "compare.json").exists()


def test_the_steps_that_fit_follow_from_the_pace():
    changes = {"data": "digits", "seed": 0}
    few, many = (compare._steps(CODES.stages[0], changes, seconds, TABLE) for seconds in (1.0, 100.0))
    assert 1 <= few < many
    with pytest.raises(TrainingError, match=r"a step of vqvae takes longer than its 0\.00 s; give it more \(--minutes\)"):
        compare._steps(CODES.stages[0], changes, 1e-6, TABLE)


@pytest.mark.parametrize(("classes", "first"), [(True, "cgan"), (False, "sngan")])
def test_each_entrant_has_the_whole_of_the_minutes(classes, first):
    chosen = compare.entrants(classes)
    assert chosen[0].stages[0].recipe == first
    for entrant in chosen:
        assert sum(stage.share for stage in entrant.stages) == pytest.approx(1)
        assert all(stage.recipe in RECIPES for stage in entrant.stages)
