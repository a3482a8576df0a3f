"""Where the tests run CUDA kernels, an emulator or a GPU, and how results are compared with the reference's.

The fixtures `emulated` and `machine` (tests/conftest.py) are made of these. An emulated machine has the arrays of standin.py.
"""

import itertools
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from kernels import reference
from kernels.cuda import build, matmul
from scratchgen import device
from tests import standin
from tests.cuda_cases import IN_PLACE

try:
    from tests import cuda_emulator as emulator
except ImportError:  # on a machine with a GPU, one can do without
    emulator = None

MODULES = [import_module(f"kernels.cuda.{path.stem}") for path in sorted(Path(build.__file__).parent.glob("[a-z]*.py"))]
ORDERS = ("forward", "reverse", "shuffled")
EMULATED = 99  # the compute capability of no GPU


class Machine:
    """Where kernels run: arrays are sent there and come back."""

    def __init__(self, there, back, capability=EMULATED):
        self.there, self.back, self.capability = there, back, capability


def emulation(monkeypatch, orders=ORDERS):
    """The emulator, each launch in the next of `orders`. What a function allocates for its kernels begins as NaN."""
    if emulator is None:
        pytest.skip("the emulator needs greenlet: pip install '.[cuda-check]'")
    launches = itertools.count(1)

    def run(kernel, blocks, arguments):
        i = next(launches)
        emulator.launch(kernel, blocks, arguments, orders[i % len(orders)], seed=i)

    def poisoned(like, shape):
        made = np.empty_like(like, shape=shape, dtype=np.float32, order="C")
        made.fill(np.nan)
        return made

    monkeypatch.setattr(build, "run", run)
    monkeypatch.setattr(matmul, "LEAST", 32)
    for module in MODULES:
        if hasattr(module, "empty"):
            monkeypatch.setattr(module, "empty", poisoned)
    return Machine(lambda x: standin.wrapped(x.copy(order="K")), lambda x: x.host)


def gpu(monkeypatch):
    """A GPU, where there is one."""
    if device.obstacle():
        pytest.skip(device.obstacle())
    library = device.library()
    monkeypatch.setattr(matmul, "LEAST", 32)
    return Machine(library.asarray, library.asnumpy, library.cuda.runtime.getDeviceProperties(0)["major"])


# ---------------------------------------------------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------------------------------------------------


def mapped(change, x):
    """x with every array in it, also in lists, changed."""
    return [mapped(change, y) for y in x] if isinstance(x, list) else change(x) if isinstance(x, np.ndarray) else x


def wrong(machine, module, name, arguments, options, tolerance=2e-5):
    """What is wrong with one case, computed by `module.name` on the machine's arrays, or None."""
    expected = mapped(np.copy, list(arguments))
    wanted = getattr(reference, name)(*expected, **{k: mapped(np.copy, v) for k, v in options.items()})
    sent, sent_options = mapped(machine.there, list(arguments)), {k: mapped(machine.there, v) for k, v in options.items()}
    found = getattr(module, name)(*sent, **sent_options)
    changed = IN_PLACE.get(name, ())
    for i, (x, y) in enumerate(zip(sent, expected, strict=True)):
        for mine, theirs in zip(x, y, strict=True) if isinstance(y, list) else [(x, y)]:
            exactly = tolerance if i in changed else 0
            if isinstance(theirs, np.ndarray) and (problem := difference(machine.back(mine), theirs, exactly)):
                return f"argument {i}: {problem}"
    if "out" in options and found is not sent_options["out"]:
        return "out= was not returned"
    for i, (x, y) in enumerate(zip(listed(found), listed(wanted), strict=True)):
        if (x is None) != (y is None):
            return f"result {i}: expected {y}, got {x}"
        x = np.asarray(x) if isinstance(x, float) else x if x is None else machine.back(x)
        if y is not None and (problem := difference(x, np.asarray(y), tolerance)):
            return f"result {i}: {problem}"
    return None


def listed(x):
    return () if x is None else x if isinstance(x, tuple) else (x,)


def difference(x, y, tolerance):
    while y.ndim > x.ndim:  # keys that products share
        y = y.sum(axis=0)
    if x.shape != y.shape or x.dtype != y.dtype:
        return f"expected {y.dtype} {y.shape}, got {x.dtype} {x.shape}"
    scale = np.max(np.abs(y), initial=1, where=np.isfinite(y))
    if not np.allclose(x, y, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
        return f"off by {np.max(np.abs(x - y)):.2g}"
    return None
