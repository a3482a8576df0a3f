"""The tests of the CUDA kernels are tested: a planted fault is found, and Numba's own simulator agrees with the emulator."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba.cuda")
pytest.importorskip("greenlet", reason="the emulator needs greenlet: pip install '.[cuda-check]'")

from kernels.cuda import attention, build, rows
from tests import cuda_emulator as emulator
from tests.cuda_cases import CASES
from tests.cuda_machines import wrong

ROOT = Path(__file__).resolve().parent.parent

GUARD = "if j >= S or i >= T or (options.causal and j > i):\n                        s[m, n]"
FAULTS = {  # file, kernel, the lines as they are, and as they must not be
    "no barrier before the tiles are read": (
        "matmul",
        "matmul",
        "            cuda.syncthreads()\n            loop(a, b",
        "            loop(a, b",
    ),
    "a swapped index in a product": ("matmul", "matmul", "a[buffer, k, y * micro + m]", "a[buffer, y * micro + m, k]"),
    "no guard at the edge of a product": ("matmul", "matmul", "if i < M and j + uint32(n) < N:", "if j + uint32(n) < N:"),
    "k not cut at its end": ("matmul", "matmul", "and k + uint32(q) < end else", "else"),
    "no barrier between keys and values": (
        "attention_forward",
        "attention",
        "            cuda.syncthreads()\n            load_kv(kv, V",
        "            load_kv(kv, V",
    ),
    "no present among the past": ("attention_forward", "attention", GUARD, GUARD.replace("j > i", "j >= i")),
    "keys beyond the end": ("attention_forward", "attention", GUARD, GUARD.replace("j >= S or ", "")),
    "the running sum not shrunk": ("attention_forward", "attention", "total[m] * shrink + part", "total[m] + part"),
    "rows and columns swapped in a gradient": (
        "attention_backward",
        "attention_backward",
        "w[uint32(i), ty + uint32(m * SIDE)]",
        "w[ty + uint32(m * SIDE), uint32(i)]",
    ),
    "no barrier before the column sums": (
        "rows",
        "layer_norm_backward",
        "    gradients[part, column % COLUMNS] = settle(db, db_lost)\n    cuda.syncthreads()",
        "    gradients[part, column % COLUMNS] = settle(db, db_lost)",
    ),
    "an ignored target counts": (
        "rows",
        "cross_entropy",
        "if t == ignored:\n            loss[i]",
        "if False:\n            loss[i]",
    ),
    "one element too many": (
        "elementwise",
        "binary_cross_entropy",
        "if i < x.size:\n        positive",
        "if i <= x.size:\n        positive",
    ),
    "a swapped window": (
        "convolution",
        "conv",
        "i = window // g.windows_j * g.stride_i",
        "i = window % g.windows_j * g.stride_i",
    ),
    "padding forgotten on the way back": (
        "convolution",
        "conv_input_grad",
        "y = i + g.padding_i - a * g.dilation_i",
        "y = i - a * g.dilation_i",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(emulated, monkeypatch, tmp_path, fault):
    """The same comparison, with one line of the kernels changed: some case must not come out right."""
    file, name, lines, instead = FAULTS[fault]
    source = (Path(build.__file__).parent / f"{file}.py").read_text()
    assert lines in source, "the lines to change are no longer there"
    path = tmp_path / f"faulty_{file}.py"
    path.write_text(source.replace(lines, instead, 1))
    monkeypatch.setattr(build, "KERNELS", {})
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if file.startswith("attention_"):  # attention.py launches the kernels of attention_forward.py and attention_backward.py
        monkeypatch.setattr(attention, file.removeprefix("attention_"), module)
        module = attention
    else:
        monkeypatch.setattr(module, "empty", rows.empty)  # whose memory begins as NaN
    with np.errstate(all="ignore"):
        for arguments, options in CASES[name]():
            try:
                if wrong(emulated, module, name, arguments, options):
                    return
            except (IndexError, AssertionError, emulator.BarrierError):
                return
    pytest.fail("no case was wrong")


# ---------------------------------------------------------------------------------------------------------------------
# A second opinion
# ---------------------------------------------------------------------------------------------------------------------

SIMULATED = """
import numpy as np
from kernels import reference
from kernels.cuda import build, convolution, elementwise, matmul, optimizer
assert build.config.ENABLE_CUDASIM
build.run = lambda kernel, blocks, arguments: kernel.jitted[blocks, kernel.threads](*arguments)
rng = np.random.default_rng(0)
normal = lambda *shape: rng.standard_normal(shape).astype("f")
a, b = normal(1, 17, 5), normal(1, 5, 18)
c = np.full((1, 17, 18), np.nan, "f")
build.launch(matmul.tiled, 4, a, b, c)
np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=1e-5)
c[...] = np.nan
build.launch(matmul.blocked, 1, a, b, c)
np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=1e-5)
c = matmul.multiply(a, normal(1, 3, 5).swapaxes(1, 2))
x = normal(3, 7)
np.testing.assert_allclose(elementwise.gelu(x), reference.gelu(x), rtol=1e-5, atol=1e-6)
np.testing.assert_array_equal(elementwise.dropout(x, p=0.5, seed=3), reference.dropout(x, p=0.5, seed=3))
arguments = [normal(20), normal(20), normal(20), abs(normal(20))]
others = [x.copy() for x in arguments]
options = dict(step=2, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)
optimizer.adamw(*[[x] for x in arguments], **options)
reference.adamw(*[[x] for x in others], **options)
np.testing.assert_allclose(arguments, others, rtol=1e-5)
x, w = normal(1, 2, 4, 5), normal(3, 2, 2, 2)
geometry = dict(stride=(1, 2), padding=(1, 0), dilation=(1, 1))
y = reference.conv(x, w, **geometry)
np.testing.assert_allclose(convolution.conv_input_grad(y, w, (4, 5), **geometry),
                           reference.conv_input_grad(y, w, (4, 5), **geometry), rtol=1e-4, atol=1e-4)
print("the simulator agrees")
"""


def test_the_simulator_agrees():
    """Numba's own simulator of CUDA, in a process of its own: it is chosen when Numba is imported."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run([sys.executable, "-c", SIMULATED], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout == "the simulator agrees\n", done.stderr
