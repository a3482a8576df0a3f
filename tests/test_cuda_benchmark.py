"""The benchmark of a GPU, rehearsed without one: all of it runs on the stand-in, at tiny sizes, and no figure is kept."""

import contextlib
import json
import sys
import time
import types

import numpy as np
import pytest

from kernels import backends, reference
from scratchgen import device
from tests import standin

pytest.importorskip("greenlet", reason="the emulator needs greenlet: pip install '.[cuda-check]'")

from benchmarks import __main__, cuda
from kernels.cuda import build
from tests import cuda_emulator as emulator


class Rehearsal(cuda.Lab):
    """The stand-in, and a clock of the host's."""

    turn, rounds, launches = 0, 1, 1
    name, tf32 = "stand in", False

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def once(self, call, times):
        begin = time.perf_counter()
        for _ in range(times):
            call()
        return 1e3 * (time.perf_counter() - begin)

    def torch(self):
        raise ImportError("not in a rehearsal")


@pytest.fixture
def rehearsal(monkeypatch, tmp_path):
    library, seen = standin.Library(), set()

    def run(kernel, blocks, arguments):
        if kernel.name not in seen and kernel.name != "chains":  # what is compared with the library; the rest is repetition
            emulator.launch(kernel, blocks, arguments)
        seen.add(kernel.name)

    monkeypatch.setattr(device, "library", lambda: library)
    monkeypatch.setattr(device, "synchronize", lambda: None)
    monkeypatch.setattr(build, "run", run)
    monkeypatch.setattr(backends, "CUDA", standin.by_reference(reference))  # of the models
    monkeypatch.setattr(cuda, "RESULTS", tmp_path)
    device._kept.cache_clear()
    yield Rehearsal(), seen, tmp_path
    device._kept.cache_clear()
    cuda.Rivals.missing.pop("torch", None)
    backends.choice.device = None


def test_the_benchmark_is_rehearsed(rehearsal):
    lab, seen, folder = rehearsal
    with np.errstate(all="ignore"):
        rows = cuda.run(True, "", lab)
    names = {row["what"] for row in rows}
    assert {"naive 24³", "sgemm 24³", "softmax", "adamw", "VAE 784-400-20, batch 128"} <= names and len(rows) > 15
    assert all(row["ms"] > 0 for row in rows)
    assert {"naive", "tiled", "blocked", "sgemm_NN_128_vector", "attention_32", "chains", "adam_each"} <= seen
    kept = json.loads((folder / "cuda-stand-in.json").read_text())
    assert kept["device"] == "stand in" and kept["rows"] == json.loads(json.dumps(rows))
    assert cuda.run(True, "gelu", lab)[0]["what"] == "gelu"


def test_a_pytorch_that_reaches_no_gpu_is_missing(monkeypatch):
    torch = types.SimpleNamespace(__version__="2.0+cpu", cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(ImportError, match=r"PyTorch 2\.0\+cpu reaches no GPU"):
        cuda.Lab.torch(None)


def test_the_aims_are_those_of_the_figures():
    rows = [{"what": "sgemm 4096³", "ms": 2.0, "× cuBLAS": 0.9}, {"what": "GPT 6/6/384, block 256, batch 64", "ms": 30.0}]
    met = [goal.row()["met"] for goal in cuda.goals(rows)]
    assert met == ["yes", "no rival"]


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(device, "obstacle", lambda: "this machine has no GPU that CUDA knows")
    with contextlib.suppress(SystemExit):
        assert __main__.main(["cuda"]) == 2
    said = capsys.readouterr()
    assert said.err == "benchmarks: cuda: there is nothing to measure on, this machine has no GPU that CUDA knows.\n"
    assert not said.out
