"""What U-Nets and transformers are made of, op by op, forward and backward through the engine, beside PyTorch; on one thread
and on all. All these ops are bound by memory, so their times are compared, and no floating-point operations are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks import clock

PICTURES, CHANNELS = (16, 64, 32, 32), (64,)
ROWS, COLUMNS = (2048, 512), (512,)
PASSES = "forward", "backward"

# name → a function of `functional` and tensors, and their shapes; both libraries take it
CASES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "relu": (lambda F, x: F.relu(x), [PICTURES]),
    "leaky_relu": (lambda F, x: F.leaky_relu(x, 0.2), [PICTURES]),
    "elu": (lambda F, x: F.elu(x), [PICTURES]),
    "selu": (lambda F, x: F.selu(x), [PICTURES]),
    "silu": (lambda F, x: F.silu(x), [PICTURES]),
    "gelu": (lambda F, x: F.gelu(x), [PICTURES]),
    "gelu tanh": (lambda F, x: F.gelu(x, approximate="tanh"), [PICTURES]),
    "mish": (lambda F, x: F.mish(x), [PICTURES]),
    "softplus": (lambda F, x: F.softplus(x), [PICTURES]),
    "logsigmoid": (lambda F, x: F.logsigmoid(x), [PICTURES]),
    "sigmoid": (lambda F, x: x.sigmoid(), [PICTURES]),
    "tanh": (lambda F, x: x.tanh(), [PICTURES]),
    "glu": (lambda F, x: F.glu(x), [ROWS]),
    "silu gate": (lambda F, a, b: F.silu(a) * b, [ROWS, ROWS]),
    "exp": (lambda F, x: x.exp(), [PICTURES]),
    "log": (lambda F, x: x.log(), [PICTURES]),
    "sqrt": (lambda F, x: x.sqrt(), [PICTURES]),
    "abs": (lambda F, x: x.abs(), [PICTURES]),
    "clamp": (lambda F, x: x.clamp(-1, 1), [PICTURES]),
    "add": (lambda F, a, b: a + b, [PICTURES, PICTURES]),
    "mul": (lambda F, a, b: a * b, [PICTURES, PICTURES]),
    "add to channels": (lambda F, a, b: a + b, [PICTURES, (16, 64, 1, 1)]),
    "scale channels": (lambda F, a, b: a * b, [PICTURES, (16, 64, 1, 1)]),
    "softmax": (lambda F, x: F.softmax(x, -1), [ROWS]),
    "log_softmax": (lambda F, x: F.log_softmax(x, -1), [ROWS]),
    "layer_norm": (lambda F, x, w, b: F.layer_norm(x, COLUMNS, w, b), [ROWS, COLUMNS, COLUMNS]),
    "rms_norm": (lambda F, x, w: F.rms_norm(x, COLUMNS, w), [ROWS, COLUMNS]),
    "group_norm": (lambda F, x, w, b: F.group_norm(x, 8, w, b), [PICTURES, CHANNELS, CHANNELS]),
    "instance_norm": (lambda F, x, w, b: F.instance_norm(x, None, None, w, b), [PICTURES, CHANNELS, CHANNELS]),
    "batch_norm": (lambda F, x, w, b: F.batch_norm(x, None, None, w, b, True), [PICTURES, CHANNELS, CHANNELS]),
    "avg_pool2d": (lambda F, x: F.avg_pool2d(x, 2), [PICTURES]),
    "max_pool2d": (lambda F, x: F.max_pool2d(x, 2), [PICTURES]),
    "interpolate": (lambda F, x: F.interpolate(x, scale_factor=2.0), [PICTURES]),
    "pixel_shuffle": (lambda F, x: F.pixel_shuffle(x, 2), [PICTURES]),
    "mse_loss": (lambda F, x, t: F.mse_loss(x, t), [PICTURES, PICTURES]),
    "mean of channels": (lambda F, x: x.mean((2, 3)), [PICTURES]),
    "sum": (lambda F, x: x.sum(), [PICTURES]),
    "embedding": (lambda F, w, i: F.embedding(i, w), [(8192, 512), (2048,)]),
}


def _arrays(name: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = CASES[name][1]
    arrays = [rng.standard_normal(shape).astype("f") for shape in shapes]
    if name in ("log", "sqrt"):
        arrays = [np.abs(a) + np.float32(0.1) for a in arrays]
    if name == "embedding":
        arrays[1] = rng.integers(0, shapes[0][0], shapes[1])
    return arrays


def build(who: str, case: str) -> Callable[[], Any]:
    """One pass of one function: "… forward" records what a gradient needs, "… backward" goes back from there."""
    name, which = case.rsplit(" ", 1)
    function, arrays = CASES[name][0], _arrays(name)
    if who == "torch":
        library = clock.torch()
        F, grad = library.nn.functional, library.autograd.grad
    else:
        import kernels
        import scratchgen as library
        from scratchgen import functional as F

        grad = library.grad
    tensors = [library.tensor(a, requires_grad=a.dtype == np.float32) for a in arrays]
    wanted = [t for t in tensors if t.requires_grad]

    def forward() -> Any:
        return function(F, *tensors)

    y = forward()
    dy = library.tensor(np.random.default_rng(1).standard_normal(tuple(y.shape)).astype("f"))
    if who == "ours":
        with kernels.use("reference"):
            expected = forward()
            slopes = grad(expected, wanted, dy)
        for mine, theirs in zip([y, *grad(y, wanted, dy, retain_graph=True)], [expected, *slopes], strict=True):
            np.testing.assert_allclose(mine.data, theirs.data, rtol=1e-3, atol=1e-3)
    return forward if which == "forward" else lambda: grad(y, wanted, dy, retain_graph=True)


def run(quick: bool, only: str) -> list[dict]:
    """A row for each function, on one thread and on all: milliseconds of both passes, and ratios to PyTorch."""
    rows = []
    for threads in sorted({1, clock.THREADS}):
        with clock.Rivals("pieces", ["ours", "torch"], threads) as rivals:
            for name in CASES:
                if only not in name:
                    continue
                times = {which: rivals.compare(f"{name} {which}", 3 if quick else 7) for which in PASSES}
                row: dict[str, Any] = {"piece": name, "threads": threads}
                row |= {f"{who} ms": 1e3 * sum(median(times[which][who]) for which in PASSES) for who in times["forward"]}
                if "torch ms" in row:
                    row["× torch"] = row["torch ms"] / row["ours ms"]
                    row |= {f"× {which}": clock.ratio(times[which], "ours", "torch") for which in PASSES}
                rows.append(row)
    return rows


def goals(rows: list[dict]) -> list[clock.Goal]:
    """The slowest of them beside PyTorch, on one thread and on all."""
    table = []
    for threads in sorted({row["threads"] for row in rows}):
        some = [row for row in rows if row["threads"] == threads]
        found = {row["piece"]: row["× torch"] for row in some if "× torch" in row}
        worst = min(found, key=found.__getitem__) if found else None
        what = f"pieces of U-Nets and transformers, threads: {threads}, worst" + (f": {worst}" if found else "")
        ours = f"{sum(row['ours ms'] for row in some):.1f} ms all"
        table.append(clock.Goal(what, ours, "PyTorch", found[worst] if worst else None, 1.0, 1.2))
    return table
