"""The command line: what it answers, and that every mistake gets one sentence and exit code 2."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scratchgen import random
from scratchgen.__main__ import main
from scratchgen.training import pictures

ROOT = Path(__file__).parent.parent
TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 20
SET = ["batch_size=8", "sample_every=100", "log_every=2"]
MODEL = {
    "vae": ["hidden=16", "latent=3"],
    "gan": ["hidden=16", "latent=4"],
    "gpt": ["block_size=8", "n_layer=1", "n_head=2", "n_embd=16"],
}


def settings(name):
    return [word for setting in SET + MODEL[name] for word in ("--set", setting)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a text, a file, and small runs of a vae, a gan and a gpt."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    (folder / "picture.jpg").write_bytes(b"no")
    state = random.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "curves", lambda panels, rows: b"")
        for name in MODEL:
            data = ["--data", str(folder / "text.txt")] if name == "gpt" else ["--data", "digits"]
            assert main(["train", name, "--steps", "4", "--out", str(folder / name), *data, *settings(name)]) == 0
    (folder / "damaged").mkdir()
    raw = bytearray((folder / "vae" / "checkpoint.safetensors").read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / "damaged" / "checkpoint.safetensors").write_bytes(raw)
    random.set_rng_state(state)
    return folder


@pytest.fixture
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setattr(pictures, "curves", lambda panels, rows: b"")
    state = random.get_rng_state()
    yield runs
    random.set_rng_state(state)


MISTAKES = {
    "": "COMMAND.*--help",
    "trian": "'trian'",
    "train": "RECIPE",
    "train vea": "'vea'.*did you mean 'vae'",
    "train gpt2x": "there are gan, dcgan",
    "train vae --stepz 3": "--stepz",
    "train vae --steps 0": "--steps.*at least 1, got '0'",
    "train vae --steps 1e3": "--steps.*'1e3'",
    "train vae --steps": "--steps",
    "train vae --seed -1": "--seed.*at least 0",
    "train vae --device tpu": "'cpu' or 'cuda', got 'tpu'",
    "train vae --set latent": "KEY=VALUE, got 'latent'",
    "train vae --set =3": "KEY=VALUE",
    "train vae --set colour=3": "no setting 'colour'",
    "train vae --set latent=many": "latent: expected a whole number.*'many'",
    "train vae --set latent=0": "latent: expected a whole number of at least 1",
    "train vae --set lr=fast": "lr: expected a finite number",
    "train vae --set shape=3": "shape: the data decide",
    "train vae --set network=rnn": "network 'mlp' or 'conv', got 'rnn'",
    "train gan --set loss=banana --data digits": "'banana'",
    "train gpt --set n_head=3 --data text.txt": "multiple of n_head",
    "train gan --data text.txt": "learns from images.*gpt can learn",
    "train gpt --data digits": "learns from text.*vae",
    "train vae --data nowhere": "'nowhere'",
    "train vae --data digitz": "did you mean 'digits'",
    "train vae --data picture.jpg": "picture.jpg",
    "train gpt --data text.txt --set block_size=5000": "5001",
    "train vae --set batch_size=100000": "batch_size.*got 100000",
    "train vae --set size=4": "size: only a folder",
    "train vae --out vae": "already holds a run.*--resume",
    "train vae --out .": "no run",
    "train vae --out text.txt": "got a file",
    "train vae --resume --out gan": "recipe 'gan', not of 'vae'",
    "train vae --resume --out vae --seed 3": "begun with seed = 0",
    "train vae --resume --out vae --set lr=0.5": "begun with lr = 0.001",
    "train vae --resume --out vae --steps 2": "already at step 4",
    "train vae --resume --out damaged": "no run",
    "sample": "RUN",
    "sample nowhere": "nowhere: expected the folder of a run",
    "sample text.txt": "text.txt",
    "sample damaged": "damaged",
    "sample vae -n 0": "-n",
    "sample vae -n many": "'many'",
    "sample vae --label 3": "--label: the recipe 'vae' does not take it",
    "sample vae --prompt hello": "--prompt: the recipe 'vae' does not take it; it draws without any such option",
    "sample vae --temperature 0.5": "--temperature: the recipe 'vae' does not take it",
    "sample vae --top-k 3": "--top-k: the recipe 'vae' does not",
    "sample vae --out picture.jpg": r"\.png",
    "sample vae --out text.txt/x.png": "text.txt",
    "sample gpt --prompt Ж": "Ж.*not among",
    "sample gpt --temperature -1": "--temperature.*at least 0",
    "sample gpt --temperature nan": "--temperature",
    "sample gpt --top-p 0": "--top-p",
    "sample gpt --top-p 1.5": "--top-p",
    "sample gpt --top-k 0": "--top-k",
    "sample gpt --length 0": "--length",
    "sample gpt --out vae": "name of a file",
    "eval": "RUN",
    "eval nowhere": "nowhere",
    "eval damaged": "damaged",
    "recipes vea": "did you mean 'vae'",
    "data digits": "digits",
    "info more": "more",
    "demo --seed x": "--seed",
    "demo --out text.txt": "text.txt",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_gets_one_sentence(command, here, capsys):
    before = sorted(map(str, here.rglob("*")))
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert re.search(MISTAKES[command], err), err
    assert err.startswith("scratchgen: ") and err.count("\n") == 1 and err.endswith(".\n") and "Traceback" not in err
    assert sorted(map(str, here.rglob("*"))) == before, "a mistake leaves nothing behind"


@pytest.mark.parametrize(
    "command", ["--help", "demo --help", "train --help", "sample --help", "eval --help", "gradcheck -h", "info -h"]
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main(command.split())
    out, _ = capsys.readouterr()
    assert end.value.code == 0 and "usage: scratchgen" in out
    assert "examples:" in out or command == "info -h"


def test_lists(capsys):
    assert main(["recipes"]) == main(["recipes", "gpt"]) == main(["data"]) == main(["info"]) == 0
    out, _ = capsys.readouterr()
    for word in ("vae-conv", "n_embd", "python-docs", "NumPy", "cores", "BLAS", "kernels"):
        assert word in out


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_samples_of_pictures(name, here, capsys):
    assert main(["sample", name, "-n", "5"]) == 0
    path = Path(capsys.readouterr().out.strip())
    with Image.open(path) as picture:
        assert picture.size == (3 * 54 + 6, 2 * 54 + 6)  # 5 images in 3 columns of 8 pixels and a gap, 6 times as large
    first = path.read_bytes()
    assert main(["sample", name, "-n", "5", "--out", "new/again.png"]) == 0 and Path("new/again.png").read_bytes() == first
    assert (
        main(["sample", name, "-n", "5", "--seed", "1", "--out", "other.png"]) == 0 and Path("other.png").read_bytes() != first
    )


def test_samples_of_text(here, capsys):
    def sample(*options):
        assert main(["sample", "gpt", "--length", "30", *options]) == 0
        return capsys.readouterr().out

    text = sample("--prompt", "the ")
    assert text.startswith("the ") and len(text) == 4 + 30 + 1 and set(text) <= set(TEXT)
    assert sample("--prompt", "the ") == text != sample("--prompt", "the ", "--seed", "1")
    assert sample("--temperature", "0") == sample("--top-k", "1") == sample("--temperature", "0", "--seed", "3")
    assert len(sample("-n", "3").split("\n" + "─" * 40 + "\n")) == 3
    assert main(["sample", "gpt", "--length", "30", "--prompt", "the ", "--out", "written.txt"]) == 0
    assert Path("written.txt").read_text() == text


@pytest.mark.parametrize(
    "name, keys",
    [
        ("vae", {"elbo", "kl", "active_units", "log_likelihood", "frechet_distance", "frechet_distance_restored"}),
        ("gan", {"value", "frechet_distance", "precision", "recall", "diversity", "frechet_distance_real"}),
        ("gpt", {"nll", "perplexity", "bits_per_byte"}),
    ],
)
def test_eval(name, keys, here, capsys):
    assert main(["eval", name]) == 0
    table = capsys.readouterr().out
    found = json.loads(Path(name, "eval.json").read_text())
    assert keys <= set(found["scores"]) and found["step"] == 4 and all(np.isfinite(v) for v in found["scores"].values())
    for key in found["scores"]:
        assert re.sub("_(restored|real|shifted)$", "", key).replace("_", " ") in table
    assert ("real data  moved by a pixel" in table) == (name != "gpt")
    assert ("restored" in table) == (name == "vae")
    assert "d real" in table or name != "gan"
    assert main(["eval", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found, "and the same scores again"


def test_bits_per_byte_are_what_the_loss_says(here, capsys):
    assert main(["eval", "gpt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scores"]
    assert found["bits_per_byte"] == pytest.approx(found["nll"] / np.log(2)), "of ASCII text every character is a byte"


def test_train_again_and_further(here, capsys):
    train = ["train", "vae", "--steps", "3", "--out", "further", *settings("vae")]
    assert main(train) == 0 and main([*train, "--resume"]) == 0
    assert "all 3 steps are done" in capsys.readouterr().out
    assert main(["train", "vae", "--out", "further", "--resume", "--steps", "5"]) == 0
    assert "5 steps" in capsys.readouterr().out
    assert main(["train", "vae", "--out", "fresh", "--steps", "2", "--resume", *settings("vae")]) == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_a_diverging_run_says_so(here, capsys):
    wild = ["train", "vae", "--steps", "300", *settings("vae"), "--set", "warmup=100"]
    assert main([*wild, "--out", "wild", "--set", "lr=30"]) == 1
    err = capsys.readouterr().err
    assert re.match(r"scratchgen: step \d+: .* is .*, so the run stops; the checkpoint of step \d+ is kept; "
                    r"try --set lr=0.001 instead of 30, in another folder \(--out\)\.\n$", err)  # fmt: skip
    assert main(["sample", "wild"]) == main(["eval", "wild"]) == 0, "what is kept has not diverged"
    capsys.readouterr()
    assert main([*wild, "--out", "wilder", "--set", "lr=1e30"]) == 2, "known after the rehearsal"
    err = capsys.readouterr().err
    assert re.match(r"scratchgen: recipe 'vae': .* after the first step, so the run cannot begin; "
                    r"try --set lr=0.001 instead of 1e\+30, in another folder \(--out\)\.\n$", err)  # fmt: skip
    assert not (here / "wilder").exists()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(number, code, tmp_path):
    command = [
        sys.executable,
        "-m",
        "scratchgen",
        "train",
        "vae",
        "--steps",
        "100000",
        "--out",
        str(tmp_path / "run"),
        *settings("vae"),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path)
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoint.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    step = int(re.search(r"saved at step ([\d,]+) of 100,000; to go on: (.*)\n$", err)[1].replace(",", ""))
    assert "Traceback" not in err and f"scratchgen train vae --resume --out {tmp_path / 'run'}" in err
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] in (step, step - 1)


def test_importing_the_command_line_is_light():
    heavy = ["matplotlib", "tqdm", "sklearn", "safetensors", "PIL", "numba", "scipy"]
    code = f"import sys, scratchgen.__main__; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
