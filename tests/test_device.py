"""The device path of the engine, on arrays that refuse to come back to the host (`standin.py`).

Each training step is made twice, on NumPy's arrays and on the stand-in's, and must be the same; whatever would have
made a silent round trip over the host raises.
"""

import re
from pathlib import Path

import numpy as np
import pytest

import scratchgen as sg
from kernels import backends, reference
from scratchgen import __main__, device, nn, optim, training
from scratchgen import functional as F
from scratchgen.models import GAN, GPT, VAE, VQVAE, Flow, FlowConfig, GANConfig, GPTConfig, VAEConfig, VQVAEConfig
from tests import standin

rng = np.random.default_rng(0)


@pytest.fixture
def gpu(monkeypatch):
    """A device that is none: its library is the stand-in, its kernels are the reference."""
    library = standin.Library()
    monkeypatch.setattr(device, "library", lambda: library)
    monkeypatch.setattr(backends, "CUDA", standin.by_reference(reference))
    device._kept.cache_clear()
    yield library
    device._kept.cache_clear()
    backends.choice.device = None


def pictures(n):
    return (np.random.default_rng(1).random((n, 1, 8, 8)) < 0.3).astype(np.float32), None


def tokens(n, length, vocabulary):
    ids = np.random.default_rng(1).integers(0, vocabulary, (n, length + 1))
    return ids[:, :-1], ids[:, 1:]


MODELS = {
    "gpt": (lambda: GPT(GPTConfig(11, 8, 2, 2, 16, bias=True)), tokens(3, 8, 11)),
    "gpt with dropout": (lambda: GPT(GPTConfig(11, 8, 1, 2, 16, dropout=0.2)), tokens(3, 8, 11)),
    "gpt with checkpoints": (lambda: GPT(GPTConfig(11, 8, 2, 2, 16, checkpoint=True)), tokens(3, 8, 11)),
    "vae": (lambda: VAE(VAEConfig(hidden=16, latent=3)), pictures(5)),
    "vae with convolutions": (lambda: VAE(VAEConfig(network="conv", hidden=4, latent=3)), pictures(5)),
    "vqvae": (lambda: VQVAE(VQVAEConfig((1, 8, 8), hidden=8, dim=3, codes=5)), pictures(5)),
    "fsq": (lambda: VQVAE(VQVAEConfig((1, 8, 8), hidden=8, quantizer="fsq", levels="3,2")), pictures(5)),
    "flow": (lambda: Flow(FlowConfig((1, 8, 8), 8, centre=(0.5,), scale=0.5)), pictures(40)),
    "gan": (lambda: GAN(GANConfig(hidden=16, latent=4)), pictures(5)),
    "gan, minimax": (lambda: GAN(GANConfig(hidden=16, latent=4, loss="minimax")), pictures(5)),
    "dcgan": (lambda: GAN(GANConfig(network="dcgan", hidden=8, latent=4)), pictures(5)),
}
# the figures a step returns; for GPT, flow and the players of a game norms of gradients; the codes, and which of them are dead
READS = {"gpt": 2, "vae": 3, "vqvae": 9, "fsq": 4, "flow": 2, "gan": 6}


def trained(make, batch, where, steps=3):
    sg.manual_seed(3)
    model = make().to(where)
    optimizers = model.optimizers()
    return model, optimizers, [model.training_step(batch, optimizers) for _ in range(steps)]


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_on_the_device_is_that_on_the_host(gpu, name):
    make, batch = MODELS[name]
    model, optimizers, losses = trained(make, batch, "cpu")
    standin.reads.clear()
    other, others, found = trained(make, batch, "cuda")
    assert other.device == "cuda" and all(p.device == "cuda" for p in [*other.parameters(), *other.buffers()])
    family = name.replace("dc", "").replace(",", " ").split()[0]
    assert len(standin.reads) == 3 * READS[family]
    for a, b in zip(losses, found, strict=True):
        assert b == pytest.approx(a, rel=2e-5, abs=1e-6)
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(other.state_dict()[name].cpu(), value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert model.evaluate([batch]).keys() == other.evaluate([batch]).keys()


def test_dropout_is_drawn_on_the_device(gpu):
    """A step with dropout, of activations and of attention weights, sends what one without sends: no mask."""
    sent = []
    for dropout in (0.0, 0.2):
        model = GPT(GPTConfig(11, 8, 2, 2, 16, dropout=dropout)).to("cuda")
        optimizers = model.optimizers()
        model.training_step(tokens(3, 8, 11), optimizers)  # numbers are sent once
        gpu.sent = 0
        model.training_step(tokens(3, 8, 11), optimizers)
        sent.append(gpu.sent)
    assert sent[1] == sent[0] == 8 * (2 * 3 * 8 + 8)  # the batch and the positions


def test_what_a_model_draws_comes_back_to_the_host(gpu):
    for name in ("gpt", "vae", "dcgan"):
        make, batch = MODELS[name]
        sg.manual_seed(0)
        model = make().eval()
        arguments = (batch[0][:1, :3], 8) if name == "gpt" else (2,)
        here = model.generate(*arguments, generator=np.random.default_rng(0))
        there = model.to("cuda").generate(*arguments, generator=np.random.default_rng(0))
        assert isinstance(there, np.ndarray)
        np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-6)


def test_a_run_goes_on_where_it_was_on_the_other_device(gpu):
    """Optimisers and weights saved on one device and loaded on the other take the same steps."""
    make, batch = MODELS["vae"]
    _, _, expected = trained(make, batch, "cpu", 4)
    for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
        model, optimizers, _ = trained(make, batch, first, 2)
        state = sg.random.get_rng_state()
        saved = model.state_dict(), {name: o.state_dict() for name, o in optimizers.items()}
        assert all(x.device == first for x in saved[0].values())
        model = make().to(second)
        optimizers = model.optimizers()
        model.load_state_dict(saved[0])
        for name, o in optimizers.items():
            o.load_state_dict(saved[1][name])
        sg.random.set_rng_state(state)
        for step in (2, 3):
            found = model.training_step(batch, optimizers)
            assert found == pytest.approx(expected[step], rel=2e-5)


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop], ids=lambda m: m.__name__)
def test_every_optimiser_moves_parameters_on_the_device(gpu, make):
    results = []
    for where in ("cpu", "cuda"):
        p = sg.tensor([1.0, -2.0, 3.0], device=where, requires_grad=True)
        options = {"momentum": 0.9} if make is optim.SGD else {}
        optimizer = make([p], lr=0.1, **options)
        average = optim.EMA(nn.Linear(2, 2).to(where), 0.5)
        average.update()
        for _ in range(3):
            optimizer.zero_grad()
            (p * p).sum().backward()
            optimizer.step()
        with average.swapped():
            pass
        assert all(x.device == where for x in average.state_dict().values())
        results.append(p.detach().cpu().numpy())
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_draws_on_the_device_are_those_on_the_host(gpu):
    w = np.float32([[0.0, 3.0, 2.0], [1.0, 0.5, 0.5]])
    for draw in (
        lambda x: sg.multinomial(x, 2),
        lambda x: sg.multinomial(x, 4, True),
        lambda x: sg.multinomial(x[0], 4, True),
        lambda x: sg.bernoulli(x / 3),
        lambda x: x.new_ones(2, 3).normal_() + x.new_full((3,), 2.0) + x.new_tensor([1, 2, 3]),
        lambda x: x.detach().clone().add_(1).mul_(x).argsort(),
    ):
        found = []
        for where in ("cpu", "cuda"):
            sg.manual_seed(2)
            x = sg.tensor(w, device=where)
            standin.reads.clear()
            y = draw(x)
            assert y.device == where and not standin.reads
            found.append(y.tolist())
        assert found[0] == found[1]


def test_tensors_move_and_say_where_they_are(gpu):
    x = sg.tensor([[1.0, 2.0]], requires_grad=True)
    y = x.to("cuda")
    assert (x.device, y.device, y.cpu().device, y.to("cuda") is y) == ("cpu", "cuda", "cpu", True)
    assert x.to("cuda:0", np.float64).dtype == np.float64
    (y * 3).sum().backward()
    assert x.grad.device == "cpu" and x.grad.tolist() == [[3.0, 3.0]]
    assert repr(sg.tensor([1.0], device="cuda")) == "tensor([1.], device='cuda')"
    with pytest.raises(TypeError, match=r"\.cpu\(\)\.numpy\(\)"):
        y.detach().numpy()
    with pytest.raises(ValueError, match="device: expected 'cpu' or 'cuda', got 'tpu'"):
        sg.zeros(2, device="tpu")
    with sg.no_grad():
        y = sg.zeros(2, 2, device="cuda")
        y[0] = 1
        y[1] = np.array([2.0, 3.0], np.float32)
        y += 1
    assert y.tolist() == [[2.0, 2.0], [3.0, 4.0]]
    assert [10, 20, 30][sg.tensor(1, device="cuda")] == 20
    signs = [np.signbit((sg.ones(1, device="cuda") * zero).cpu().numpy())[0] for zero in (0.0, -0.0)]
    assert signs == [False, True]  # each number is sent once, and these are two


@pytest.mark.parametrize(
    "op",
    [
        lambda x, y: x + y,
        lambda x, y: x @ y,
        lambda x, y: F.linear(x, y),
        lambda x, y: F.scaled_dot_product_attention(x, y, y),
        lambda x, y: sg.cat([x, y]),
        lambda x, y: F.mse_loss(x, y),
    ],
)
def test_tensors_on_two_devices_do_not_mix(gpu, op):
    here, there = sg.ones(3, 3), sg.ones(3, 3, device="cuda")
    for x, y in ((here, there), (there, here)):
        with pytest.raises(ValueError, match="expected tensors on one device, got .*cpu.*cuda|.*cuda.*cpu"):
            op(x, y)


def test_an_index_out_of_range_gives_nan_and_no_wait(gpu):
    table = sg.ones(3, 2, device="cuda")
    standin.reads.clear()
    F.embedding(sg.tensor([0, 2], device="cuda"), table)
    F.cross_entropy(sg.ones(2, 3, device="cuda"), sg.tensor([0, 2], device="cuda"))
    assert not standin.reads


def test_saved_arrays_are_watched_on_the_device_too(gpu):
    x = sg.ones(3, device="cuda").requires_grad_()
    y = (x * x).sum()
    with sg.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(device, "obstacle", lambda: "CuPy cannot be imported")
    device.library.cache_clear()


@pytest.mark.parametrize("command", ["train vae", "sample runs/vae", "eval runs/vae"])
def test_a_command_without_a_gpu_ends_with_one_sentence(no_gpu, capsys, command):
    assert __main__.main([*command.split(), "--device", "cuda"]) == 2
    said = capsys.readouterr()
    assert said.err == "scratchgen: device 'cuda' cannot be used here: CuPy cannot be imported.\n" and not said.out


def test_info_says_why_no_gpu_is_used(no_gpu, capsys):
    assert __main__.main(["info"]) == 0
    assert re.search(r"^device +cpu; no GPU is used: CuPy cannot be imported$", capsys.readouterr().out, re.M)


def test_a_run_moves_between_devices(gpu, tmp_path):
    """Begun on the device, continued on the host and on the device again: the losses of a run that stayed on the host."""
    changes = {"hidden": 8, "latent": 2, "batch_size": 8, "ema": 0.9, "final": 1.0}
    changes |= {"log_every": 1, "sample_every": 100, "eval_batches": 1}
    runs = {}
    for name, devices in {"host": ["cpu"], "moving": ["cuda", "cpu", "cuda"]}.items():
        for i, where in enumerate(devices, 1):
            steps = 6 * i // len(devices)
            folder, resume = tmp_path / name, i > 1
            options = {"resume": resume, "device": where, "progress": False, "say": lambda _: None}
            training.train("vae", folder, {**changes, "steps": steps}, **options)
        runs[name] = training.open_run(folder)
    for here, there in zip(runs["host"].rows, runs["moving"].rows, strict=True):
        assert there["step"] == here["step"] and there["loss"] == pytest.approx(here["loss"], rel=1e-4)
    assert training.open_run(folder, device="cuda").model.device == "cuda"


def test_only_two_places_know_of_cuda():
    """kernels/cuda and scratchgen/device.py; the entry leads there, the option names it, and a message says where it is."""
    root = Path(__file__).parents[1]
    allowed = {"scratchgen/device.py", "kernels/__init__.py", "kernels/backends.py"}
    said = {"scratchgen/__main__.py": 1, "scratchgen/tensors.py": 2, "scratchgen/training/machine.py": 1}
    for path in [*root.glob("scratchgen/**/*.py"), *root.glob("kernels/**/*.py")]:
        name = str(path.relative_to(root))
        if name not in allowed and not name.startswith("kernels/cuda/"):
            lines = [line for line in path.read_text().splitlines() if re.search("cuda|cupy", line, re.I)]
            assert len(lines) == said.get(name, 0), f"{name}: {lines}"


def test_without_a_gpu_one_sentence_says_why(no_gpu):
    with pytest.raises(device.DeviceError, match=r"^device 'cuda' cannot be used here: CuPy cannot be imported\.$"):
        sg.ones(2, device="cuda")
    assert device.found() == "cpu; no GPU is used: CuPy cannot be imported"


OPS = {
    "softmax": lambda x: F.softmax(x, -1),
    "order": lambda x: x.sort(1, True).values + x.topk(4, 1, False).values + x.sort(0).values[:3],
    "counts": lambda x: sg.bincount(sg.tensor([0, 2, 2, 1], device=x.device), x[0]),
    "smooth": lambda x: x.tan() + x.sinh() + x.cosh() + sg.atan2(x, x * x + 1) + sg.lerp(x, x * x, 0.3) + sg.lerp(x, 1.0, x),
    "numbers": lambda x: x.nan_to_num() + x.div(x, rounding_mode="floor") * x + sg.addcmul(x, x, x) + x.round(decimals=1) * x,
    "cumprod": lambda x: x.cumprod(1),
    "cdist": lambda x: sg.cdist(x, x[:2]) + sg.cdist(x[1:], x * 2, 1.0).sum(),
    "vectors": lambda x: sg.outer(x[0], x[1]) + sg.dot(x[0], x[2]) + sg.diag(x[0], -1)[1:, :4] + sg.diag(x[:, :3]).sum(),
    "grid": lambda x: sg.meshgrid(x[0], x[1], indexing="xy")[0] * 2 + sg.mm(x, x.T).sum() + sg.bmm(x[None], x.T[None])[0, 0, 0],
    "one element": lambda x: x[0, 0].gather(0, sg.tensor([0, 0])) + x[1, 1].index_select(0, sg.tensor([0])),
    "one sum": lambda x: x[0, 0].scatter_add(0, sg.tensor([0, 0]), x[1]),
    "normal": lambda x: F.gaussian_nll_loss(x, x * x, x.exp(), full=True),
    "logsumexp": lambda x: x.logsumexp(0),
    "norm": lambda x: x.norm(dim=1),
    "norm 3": lambda x: x.norm(3),
    "std": lambda x: x.std(0),
    "var": lambda x: x.var(),
    "amax": lambda x: x.amax(1),
    "max": lambda x: x.max(1).values,
    "gather": lambda x: x.gather(1, sg.tensor([[0, 0], [1, 2], [3, 3]])),
    "index": lambda x: x[:, [0, 2, 2]],
    "index 2": lambda x: x[0, :2] + x[[0, 1], [1, 1]],
    "mask": lambda x: x[x > 0],
    "select": lambda x: x.index_select(1, sg.tensor([3, 0])),
    "add at": lambda x: x.index_add(0, sg.tensor([2, 0, 2]), x * x) + x.index_add(1, sg.tensor([3, 3]), x[:, :2], alpha=0.5),
    "scatter": lambda x: x.scatter_add(1, sg.tensor([[0, 0], [1, 2], [3, 3]]), x[:, :2]),
    "cumsum": lambda x: x.cumsum(1),
    "prod": lambda x: x.prod(1),
    "flip": lambda x: x.flip(0).roll(1, 1),
    "pad": lambda x: x.pad((1, 2), mode="reflect"),
    "tril": lambda x: x.tril() + x.triu(1),
    "where": lambda x: sg.where(x > 0, x, -x) * sg.where(x > 0, 1.0, 2.0),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "maximum": lambda x: sg.maximum(x, -x) - sg.minimum(x, 0.1),
    "pow": lambda x: (x * x + 1) ** x,
    "leaky": lambda x: F.leaky_relu(x) + F.elu(x) + F.gelu(x) + F.gelu(x, approximate="tanh") + F.mish(x) + F.selu(x),
    "more": lambda x: F.softplus(x) + F.logsigmoid(x) + F.silu(x) + F.hardtanh(x) + F.softsign(x) + x.erf(),
    "einsum": lambda x: sg.einsum("ij,kj->ik", x, x),
    "split": lambda x: x.split([1, 3], 1)[1] * x.chunk(2, 0)[0][:1, 1:],
    "cosine": lambda x: F.cosine_similarity(x, x * x),
    "layer norm": lambda x: F.layer_norm(x, 4) + F.rms_norm(x, 4),
    "group norm": lambda x: F.group_norm(x.reshape(1, 4, 3), 2),
    "instance norm": lambda x: F.instance_norm(x.reshape(1, 3, 4)),
    "pooling": lambda x: F.max_pool1d(x.reshape(1, 3, 4), 2) + F.avg_pool1d(x.reshape(1, 3, 4), 2),
    "interpolate": lambda x: F.interpolate(x.reshape(1, 1, 3, 4), size=(5, 7), mode="bilinear"),
    "nearest": lambda x: F.interpolate(x.reshape(1, 1, 3, 4), size=(5, 7)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x.reshape(1, 3, 4), 2),
    "shuffle": lambda x: F.pixel_shuffle(x.reshape(4, 3, 1), 2),
    "unfold": lambda x: F.unfold(x.reshape(1, 1, 3, 4), 2),
    "losses": lambda x: F.mse_loss(x, x * 2) + F.l1_loss(x, x * 2) + F.huber_loss(x, x * 2) + F.kl_div(x, F.softmax(x, 1)),
    "bce": lambda x: F.binary_cross_entropy_with_logits(x, sg.sigmoid(x).detach()),
    "classes": lambda x: F.cross_entropy(x, sg.tensor([0, 3, -100], device=x.device), label_smoothing=0.1),
    "nll": lambda x: F.nll_loss(x, sg.tensor([0, 3, 1], device=x.device)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, x.detach() @ x.detach().mT > 0),
    "causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "lstm": lambda x: nn.LSTM(4, 3, generator=np.random.default_rng(0)).to(x.device)(x)[0],
    "projected lstm": lambda x: nn.LSTM(4, 3, proj_size=2, generator=np.random.default_rng(0)).to(x.device)(x)[0],
    "added heads": lambda x: nn.MultiheadAttention(
        4, 2, add_bias_kv=True, add_zero_attn=True, generator=np.random.default_rng(0)
    ).to(x.device)(x, x, x)[0],
    "heads": lambda x: nn.MultiheadAttention(4, 2, generator=np.random.default_rng(0)).to(x.device)(x, x, x)[0],
}


@pytest.mark.parametrize("name", OPS)
def test_an_op_on_the_device_is_that_on_the_host(gpu, name):
    """Values, gradients and gradients of gradients; the reads of the host are those of an index or a mask alone."""
    host = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    results = []
    for where in ("cpu", "cuda"):
        sg.manual_seed(0)
        x = sg.tensor(host, device=where, requires_grad=True)
        y = OPS[name](x)
        (g,) = sg.grad((y * y).sum(), x, create_graph=True)
        (h,) = sg.grad((g * g).sum(), x)
        assert {y.device, g.device, h.device} == {where}
        results.append([t.detach().cpu().numpy() for t in (y, g, h)])
    for here, there in zip(*results, strict=True):
        np.testing.assert_allclose(there, here, rtol=2e-4, atol=1e-4)
