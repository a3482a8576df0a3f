"""Models on the CUDA kernels: a training step and generated text are those on the host."""

import numpy as np
import pytest

pytest.importorskip("numba.cuda")

import scratchgen as sg
from kernels.cuda import build
from scratchgen import device
from scratchgen import functional as F
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig
from tests import standin
from tests.cuda_cases import normal
from tests.cuda_machines import EMULATED


def models():
    images = (np.random.default_rng(1).random((3, 1, 8, 8)) < 0.3).astype(np.float32), None
    ids = np.random.default_rng(1).integers(0, 11, (2, 6))
    return {
        "gpt": (lambda: GPT(GPTConfig(11, 5, 1, 2, 16, bias=True)), (ids[:, :-1], ids[:, 1:])),
        "vae": (lambda: VAE(VAEConfig(hidden=16, latent=3)), images),
        "dcgan": (lambda: GAN(GANConfig(network="dcgan", hidden=4, latent=4)), images),
    }


@pytest.fixture
def engine(machine, monkeypatch, open_device):
    """The device "cuda": a GPU, or the stand-in with the emulator."""
    if machine.capability == EMULATED:
        monkeypatch.setattr(device, "library", lambda: library)
        library = standin.Library()
    device._kept.cache_clear()
    return machine


@pytest.mark.parametrize("name", ["gpt", "vae", pytest.param("dcgan", marks=pytest.mark.deep)])
def test_a_training_step_on_the_kernels_is_that_on_the_host(engine, name):
    make, batch = models()[name]
    results = []
    for where in ("cpu", "cuda"):
        sg.manual_seed(3)
        model = make().to(where)
        losses = model.training_step(batch, model.optimizers())
        results.append((losses, model.cpu().state_dict()))
    (here, state), (there, found) = results
    assert there == pytest.approx(here, rel=1e-4, abs=1e-5)
    for key, value in state.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-4, err_msg=key)


def test_what_a_gpt_writes_on_the_kernels_is_that_on_the_host(engine, monkeypatch):
    """Its prompt at once, then a query at a time beside the cached keys."""
    sg.manual_seed(3)
    model, prompt = GPT(GPTConfig(11, 5, 1, 2, 16)).eval(), np.array([[1, 2, 3]])
    expected = model.generate(prompt, 2, generator=np.random.default_rng(0))
    run, seen = build.run, []
    monkeypatch.setattr(build, "run", lambda kernel, *how: (seen.append(kernel.name), run(kernel, *how)))
    found = model.to("cuda").generate(prompt, 2, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(found, expected)
    assert [name for name in seen if "attention" in name or "query" in name] == ["attention_32", "one_query_32"]


@pytest.mark.gpu
def test_gradients_on_a_gpu_are_right(open_device):
    """Operations in float64 against differences, on the device; and whole losses over a run, against the host's."""
    if device.obstacle():
        pytest.skip(device.obstacle())
    for f in (F.gelu, lambda x: F.softmax(x, -1), lambda x: F.layer_norm(x, 4), lambda x: x @ x.mT, lambda x: x.logsumexp(0)):
        sg.gradcheck(lambda x, f=f: f(x.to("cuda")).cpu(), [normal(3, 4).astype(np.float64)])
    for make, batch in models().values():
        runs = []
        for where in ("cpu", "cuda"):
            sg.manual_seed(3)
            model = make().to(where)
            optimizers = model.optimizers()
            runs.append([list(model.training_step(batch, optimizers).values()) for _ in range(20)])
        np.testing.assert_allclose(runs[1], runs[0], rtol=2e-2, atol=1e-3)
