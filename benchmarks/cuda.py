"""The kernels on a GPU, beside cuBLAS and PyTorch, and whole training steps: `python -m benchmarks cuda`.

Time on the device is read from its events, around as many calls as fill a turn; what the host spends on one launch is shown
apart. Products, softmax and attention are compared with CuPy's or PyTorch's before they are timed. Roofs are measured, too:
multiply-adds in registers, and a copy of memory. The figures are written to benchmarks/results/cuda-<device>.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import scratchgen as sg
from benchmarks import steps
from benchmarks.clock import Goal, Rivals
from scratchgen import device
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig

RESULTS = Path(__file__).parent / "results"
Call = Callable[[], Any]


class Lab:
    """The device that is measured: arrays go there, and calls are timed there."""

    turn, rounds, launches = 0.05, 7, 20  # seconds, and how often

    def __init__(self) -> None:
        self.library = device.library()
        properties = self.library.cuda.runtime.getDeviceProperties(0)
        self.name, self.tf32 = properties["name"].decode(), properties["major"] >= 8
        self.rng = np.random.default_rng(0)

    def normal(self, *shape: int) -> Any:
        """Standard normal numbers, on the device."""
        return device.moved(self.rng.standard_normal(shape, np.float32), "cuda")

    def once(self, call: Call, times: int) -> float:
        """Milliseconds on the device for so many calls, by events."""
        begin, end = (self.library.cuda.Event() for _ in range(2))
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return self.library.cuda.get_elapsed_time(begin, end)

    def milliseconds(self, call: Call) -> float:
        """On the device, for one call."""
        self.once(call, 2)  # compiled and warm
        times = max(1, int(1e3 * self.turn / max(self.once(call, 1), 1e-3)))
        return median(self.once(call, times) / times for _ in range(self.rounds))

    def launch(self, call: Call) -> float:
        """Microseconds that the host is busy with one call, the device not waited for."""
        call()
        device.synchronize()
        begin = time.perf_counter()
        for _ in range(self.launches):
            call()
        taken = time.perf_counter() - begin
        device.synchronize()
        return 1e6 * taken / self.launches

    def torch(self) -> Any:
        """PyTorch, told to use the device. Raises ImportError without it, or where it was built for none."""
        import torch

        if not torch.cuda.is_available():
            raise ImportError(f"PyTorch {torch.__version__} reaches no GPU")
        torch.set_default_device("cuda")
        return torch


class Case:
    """One row: what is timed, what it must equal, how much work it is, and against whom."""

    def __init__(
        self, what: str, call: Call, check: Call | None, work: float, unit: str, rivals: dict[str, Call], rtol: float = 1e-3
    ):
        self.what, self.call, self.check, self.work, self.unit = what, call, check, work, unit
        self.rivals, self.rtol = rivals, rtol

    def row(self, lab: Lab, roofs: dict[str, float]) -> dict:
        if self.check is not None:
            ours, theirs = (device.moved(f(), "cpu") for f in (self.call, self.check))
            scale = float(np.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, rtol=self.rtol, atol=self.rtol * scale, err_msg=self.what)
        ms = lab.milliseconds(self.call)
        row = {"what": self.what, "ms": ms, "launch µs": lab.launch(self.call)}
        if self.unit:
            rate = self.work / ms / (1e9 if self.unit == "Tflop/s" else 1e6)
            row |= {"rate": rate, "unit": self.unit, "% of peak": 100 * rate / roofs[self.unit]}
        for name, rival in self.rivals.items():
            theirs = lab.milliseconds(rival)
            row |= {f"{name} ms": theirs, f"× {name}": theirs / ms}
        return row


# ---------------------------------------------------------------------------------------------------------------------
# Roofs
# ---------------------------------------------------------------------------------------------------------------------


def roofs(lab: Lab, quick: bool) -> dict[str, float]:
    """Tflop/s of multiply-adds in registers, GB/s of a copy."""
    from numba import cuda, float32

    from kernels.cuda.build import F1, INT, Kernel, launch

    def chains(out, loops):
        acc = cuda.local.array(8, float32)
        at = cuda.grid(1)
        for e in range(8):
            acc[e] = out[at] + float32(e)  # of different numbers, or the compiler would make one of all
        for _ in range(loops):
            for _ in range(16):  # written out, so that the loop costs little
                for e in range(8):  # eight sums that do not wait for each other
                    acc[e] = acc[e] * float32(0.999) + float32(0.001)
        total = float32(0.0)
        for e in range(8):
            total += acc[e]
        out[at] = total

    kernel = Kernel("chains", cuda.jit(chains), (F1, INT), 256, 64, 0, 75)
    blocks, loops = (2, 4) if lab.turn == 0 else (2048, 128 if quick else 512)
    out = device.moved(np.zeros(256 * blocks, np.float32), "cuda")
    flops = 2 * 8 * 16 * loops * 256 * blocks
    x = device.moved(np.zeros(1 << (10 if lab.turn == 0 else 28), np.float32), "cuda")
    return {
        "Tflop/s": flops / lab.milliseconds(lambda: launch(kernel, blocks, out, loops)) / 1e9,
        "GB/s": 2 * x.nbytes / lab.milliseconds(x.copy) / 1e6,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------------------


def products(lab: Lab, sizes: tuple[int, ...], torch: Any) -> list[Case]:
    """The ladder, step by step, beside cuBLAS with its rounding to TF32 off and on."""
    from kernels.cuda import matmul
    from kernels.cuda.build import cdiv, empty, launch

    cases = []
    for n in sizes:
        a, b = lab.normal(1, n, n), lab.normal(1, n, n)
        c, flat = empty(a, (1, n, n)), [x.reshape(-1) for x in (a, b)]

        def direct(kernel: Any, blocks: int, a: Any = a, b: Any = b, c: Any = c) -> Call:
            return lambda: (launch(kernel, blocks, a, b, c), c)[1]

        def wide(kernel: Any, n: int = n, flat: Any = flat, c: Any = c) -> Call:
            arguments = (*flat, c.reshape(-1), matmul.Products(n, n, n, 1, 1, cdiv(n, 16) * 16, 1))
            return lambda: (launch(kernel, cdiv(n, 128) ** 2, *arguments), c)[1]

        ladder = {
            "naive": direct(matmul.naive, cdiv(n * n, 256)),
            "tiled": direct(matmul.tiled, cdiv(n, 16) ** 2),
            "blocked": direct(matmul.blocked, cdiv(n, 128) ** 2),
            "sgemm": wide(matmul.sgemm("NN", n % 4 == 0, 128)),
        } | ({"tensor": wide(matmul.tensor("NN", n % 4 == 0))} if lab.tf32 else {})
        rivals: dict[str, Call] = {"cuBLAS": lambda a=a, b=b: a @ b}
        tf32: dict[str, Call] = {}
        if torch is not None:
            x, y = (torch.as_tensor(device.moved(v[0], "cpu")).to(torch.get_default_device()) for v in (a, b))

            def product(rounded: bool, x: Any = x, y: Any = y) -> Any:
                torch.backends.cuda.matmul.allow_tf32 = rounded
                return x @ y

            rivals, tf32 = {"cuBLAS": lambda p=product: p(False)}, {"cuBLAS TF32": lambda p=product: p(True)}
        for step, call in ladder.items():
            against, rtol = (tf32, 5e-3) if step == "tensor" else (rivals, 1e-3)
            cases.append(Case(f"{step} {n}³", call, lambda a=a, b=b: a @ b, 2 * n**3, "Tflop/s", against, rtol))
    return cases


def attentions(lab: Lab, shapes: tuple[tuple[int, ...], ...], torch: Any) -> list[Case]:
    """Causal attention, forward and with its gradient, beside PyTorch's fastest in float32."""
    from kernels.cuda import attention

    cases = []
    sdpa = None if torch is None else torch.nn.functional.scaled_dot_product_attention
    for B, H, T, D in shapes:
        q, k, v, dout = (lab.normal(B, H, T, D) for _ in range(4))

        def forward(q: Any = q, k: Any = k, v: Any = v) -> Any:
            return attention.attention(q, k, v, causal=True)[0]

        def both(q: Any = q, k: Any = k, v: Any = v, dout: Any = dout) -> Any:
            out, statistics = attention.attention(q, k, v, causal=True)
            return attention.attention_backward(dout, q, k, v, out, statistics, causal=True)[0]

        rivals: list[dict[str, Call]] = [{}, {}]
        checks: list[Call | None] = [None, None]
        if torch is not None:
            gpu = torch.get_default_device()
            qt, kt, vt, dt = (torch.as_tensor(device.moved(x, "cpu")).to(gpu) for x in (q, k, v, dout))
            for x in (qt, kt, vt):
                x.requires_grad_()

            def alone(qt: Any = qt, kt: Any = kt, vt: Any = vt) -> Any:
                torch.backends.cuda.matmul.allow_tf32 = False
                with torch.no_grad():
                    return sdpa(qt, kt, vt, is_causal=True)

            def graded(qt: Any = qt, kt: Any = kt, vt: Any = vt, dt: Any = dt) -> Any:
                torch.backends.cuda.matmul.allow_tf32 = False
                return torch.autograd.grad(sdpa(qt, kt, vt, is_causal=True), (qt, kt, vt), dt)

            rivals = [{"SDPA": alone}, {"SDPA": graded}]
            checks = [lambda f=alone: lab.library.asarray(f()), lambda f=graded: lab.library.asarray(f()[0])]
        flops = 4 * B * H * D * T * (T + 1) // 2
        shape = f"{B} × {H} × {T} × {D}"
        cases.append(Case(f"attention {shape}", forward, checks[0], flops, "Tflop/s", rivals[0]))
        cases.append(Case(f"attention and gradient {shape}", both, checks[1], 3.5 * flops, "Tflop/s", rivals[1]))
    return cases


def rows(lab: Lab, n: int, width: int, torch: Any) -> list[Case]:
    """What passes over memory once or twice, beside the measured bandwidth."""
    from kernels import reference
    from kernels.cuda import convolution, elementwise, optimizer
    from kernels.cuda import rows as kernel

    x, dy, w, b = lab.normal(n, width), lab.normal(n, width), lab.normal(width), lab.normal(width)
    _, mean, rstd = kernel.layer_norm(x, w, b)
    target = device.moved(np.arange(n) % width, "cuda")
    size, p = x.nbytes, [lab.normal(n, width) for _ in range(4)]
    p[3] = np.abs(p[3])
    options = {"step": 3, "lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
    channels = min(32, n)
    image, taps = lab.normal(max(n // 64, 1), channels, 16, 16), lab.normal(2 * channels, channels, 4, 4)
    geometry = {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1)}
    flops = 2 * image.shape[0] * taps.size * 8 * 8
    functional = torch.nn.functional if torch is not None else None
    xt = None if torch is None else torch.as_tensor(device.moved(x, "cpu")).to(torch.get_default_device())

    def beside(name: str, *more: Any) -> dict[str, Call]:
        return {} if functional is None else {"torch": lambda: getattr(functional, name)(xt, *more)}

    return [
        Case("softmax", lambda: kernel.softmax(x), lambda: reference.softmax(x), 2 * size, "GB/s", beside("softmax", -1)),
        Case(
            "log softmax",
            lambda: kernel.log_softmax(x),
            lambda: reference.log_softmax(x),
            2 * size,
            "GB/s",
            beside("log_softmax", -1),
        ),
        Case("cross-entropy", lambda: kernel.cross_entropy(x, target)[0], None, size, "GB/s", {}),
        Case("layer norm", lambda: kernel.layer_norm(x, w, b)[0], None, 2 * size, "GB/s", beside("layer_norm", (width,))),
        Case("layer norm, gradient", lambda: kernel.layer_norm_backward(dy, x, w, mean, rstd)[0], None, 5 * size, "GB/s", {}),
        Case("gelu", lambda: elementwise.gelu(x), None, 2 * size, "GB/s", beside("gelu")),
        Case("gelu, gradient", lambda: elementwise.gelu_backward(dy, x), None, 3 * size, "GB/s", {}),
        Case("dropout", lambda: elementwise.dropout(x, p=0.1, seed=1), None, 2 * size, "GB/s", beside("dropout", 0.1)),
        Case("adamw", lambda: optimizer.adamw([p[0]], [p[1]], [p[2]], [p[3]], **options), None, 7 * size, "GB/s", {}),
        Case("convolution, 32 channels to 64", lambda: convolution.conv(image, taps, **geometry), None, flops, "Tflop/s", {}),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Whole steps
# ---------------------------------------------------------------------------------------------------------------------


def models(tiny: bool) -> dict[str, tuple[Any, Any, Any]]:
    """The model, its batch, and the same in PyTorch."""
    rng = np.random.default_rng(0)
    block, layers, heads, width, batch = (8, 1, 2, 16, 2) if tiny else (256, 6, 6, 384, 64)
    side, many = (8, 2) if tiny else (28, 128)
    text = rng.integers(0, 65, (batch, block + 1))
    pictures = (rng.random((many, 1, side, side)) < 0.3).astype(np.float32)
    hidden = 4 if tiny else 64
    return {
        "GPT 6/6/384, block 256, batch 64": (
            lambda: GPT(GPTConfig(65, block, layers, heads, width)), (text[:, :-1], text[:, 1:]), steps.gpt_twin
        ),
        "VAE 784-400-20, batch 128": (
            lambda: VAE(VAEConfig((1, side, side), hidden=16 if tiny else 400)), (pictures, None), steps.vae_twin
        ),
        "DCGAN 28 × 28, width 64, batch 128": (
            lambda: GAN(GANConfig((1, side, side), "dcgan", hidden=hidden)), (pictures, None), steps.gan_twin
        ),
    }  # fmt: skip


def training(lab: Lab, torch: Any) -> list[Case]:
    cases = []
    for what, (make, batch, twin) in models(lab.turn == 0).items():
        sg.manual_seed(0)
        model = make()
        rivals = {}
        if torch is not None:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            rivals["torch"] = twin(model, batch, "torch")
        model = model.to("cuda")
        optimizers = model.optimizers()
        cases.append(Case(what, lambda m=model, b=batch, o=optimizers: m.training_step(b, o), None, 1, "", rivals))
    return cases


# ---------------------------------------------------------------------------------------------------------------------


def run(quick: bool, only: str, lab: Lab | None = None) -> list[dict]:
    """A row for each kernel and step. Raises DeviceError, in one sentence, without a GPU."""
    lab = Lab() if lab is None else lab
    try:
        torch = lab.torch()
    except ImportError as error:
        Rivals.missing["torch"], torch = str(error), None
    tiny = lab.turn == 0
    tops = roofs(lab, quick)
    sizes = (24,) if tiny else (1024,) if quick else (1024, 2048, 4096)
    shapes = ((1, 1, 6, 32),) if tiny else ((8, 12, 1024, 64),) if quick else ((8, 12, 1024, 64), (8, 12, 2048, 64))
    cases = products(lab, sizes, torch) + attentions(lab, shapes, torch)
    cases += rows(lab, *((3, 40) if tiny else (8192, 4096)), torch) + training(lab, torch)
    found = [case.row(lab, tops) for case in cases if only in case.what]
    content = {"device": lab.name, "peak Tflop/s": tops["Tflop/s"], "peak GB/s": tops["GB/s"], "rows": found}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"cuda-{'-'.join(lab.name.split())}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return found


def goals(rows: list[dict]) -> list[Goal]:
    """The aims for a GPU."""
    found = {row["what"]: row for row in rows}
    aims = [
        ("sgemm 4096³", "cuBLAS", 0.85, 1.0),
        ("tensor 4096³", "cuBLAS TF32", 0.5, 0.7),
        ("attention and gradient 8 × 12 × 2048 × 64", "SDPA", 1.0, 1.2),
        ("GPT 6/6/384, block 256, batch 64", "torch", 0.7, 1.0),
    ]
    return [
        Goal(what, f"{found[what]['ms']:.2f} ms", rival, found[what].get(f"× {rival}"), least, aim)
        for what, rival, least, aim in aims
        if what in found
    ]
