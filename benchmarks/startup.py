"""What has to be waited for: compiling into an empty cache folder, and from the start of Python to the end of a first step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from benchmarks.clock import THREADS, Goal, environment

ALL = """
import pkgutil
from importlib import import_module
import kernels.cpu
from kernels.cpu.build import Kernel
for module in pkgutil.iter_modules(kernels.cpu.__path__, "kernels.cpu."):
    for name, kernel in list(vars(import_module(module.name)).items()):
        if isinstance(kernel, Kernel) and "ladder" not in module.name:
            kernel["f"]
print(flush=True)
"""
STEP = """
import numpy as np, kernels
kernels.use("cpu")
from scratchgen.models import GPT, GPTConfig
model = GPT(GPTConfig(65, 64, 4, 4, 128))
text = np.random.default_rng(0).integers(0, 65, (12, 65))
model.training_step((text[:, :-1], text[:, 1:]), model.optimizers())
print(flush=True)
"""
WHATS = {
    "compiling all kernels, float32": (ALL, True, 90, 45),
    "compiling what a GPT step needs": (STEP, True, 40, 20),
    "start to the end of the first GPT step, compiled before": (STEP, False, 1.5, 0.75),
}


def _seconds(program: str, cache: str) -> float:
    """From the start of a fresh process until it has done what the program says."""
    variables = environment(THREADS) | {"NUMBA_CACHE_DIR": cache}
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", program], env=variables, stdout=subprocess.PIPE) as process:
        line = process.stdout.readline()
        taken = time.perf_counter() - start
    if not line:
        raise RuntimeError(f"benchmarks: startup: a program ended with status {process.returncode}")
    return taken


def run(quick: bool, only: str) -> list[dict]:
    """Seconds; the least of some runs where the cache is warm."""
    rows = []
    for what, (program, cold, _, _) in WHATS.items():
        if only in what and not (quick and program is ALL):
            with tempfile.TemporaryDirectory() as cache:
                first = _seconds(program, cache)
                rows.append({"what": what, "seconds": first if cold else min(_seconds(program, cache) for _ in range(5))})
    return rows


def goals(rows: list[dict]) -> list[Goal]:
    table = []
    for row in rows:
        *_, least, aim = WHATS[row["what"]]
        table.append(Goal(f"{row['what']}, s", f"{row['seconds']:.1f} s", "", row["seconds"], least, aim, below=True))
    return table
