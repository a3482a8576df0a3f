"""Compile a kernel for a GPU that is not there, and read what it would cost: registers, spills, memory, float64."""

import contextlib
import functools
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path


@functools.cache
def ptxas():
    """The assembler: from a wheel of NVIDIA's, or the system's toolkit."""
    wheels = [path for folder in sys.path for path in glob.glob(os.path.join(folder, "nvidia", "*", "bin", "ptxas"))]
    return next(iter(wheels), None) or shutil.which("ptxas") or next(iter(glob.glob("/usr/local/cuda*/bin/ptxas")), None)


@functools.cache
def obstacle():
    """Why nothing can be compiled here, if so."""
    try:
        from numba import cuda
    except ImportError as error:
        return f"numba.cuda cannot be imported: {error}"
    if ptxas() is None:
        return "no ptxas: pip install 'scratchgen[cuda-check]'"
    try:
        ptx(cuda.jit(lambda: None), (), 80)
    except Exception as error:
        return f"numba.cuda cannot compile: {str(error).splitlines()[0]}"
    return None


@contextlib.contextmanager
def pretended(capability):
    """A kernel that calls a device function asks for the capability of the GPU, though one is named: answer for it."""
    import numba.cuda.dispatcher as dispatcher

    before = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        dispatcher.get_current_device = before


def ptx(jitted, signature, arch):
    from numba import cuda

    capability = divmod(arch, 10)
    with pretended(capability):
        return cuda.compile_ptx(jitted.py_func, signature, cc=capability)[0]


def costs(kernel, arch):
    """What the assembler says of one kernel of `kernels.cuda`, and what stands in its PTX."""
    text = ptx(kernel.jitted, kernel.signature, arch)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(text)
        limit = f"-maxrregcount={kernel.registers}"
        command = [ptxas(), f"-arch=sm_{arch}", "-v", limit, "-o", str(Path(folder, "kernel.cubin")), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{kernel.name} for sm_{arch}: {done.stderr}")
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    shared = re.findall(r"(\d+) bytes smem", done.stderr)
    return {
        "registers": max(map(int, re.findall(r"Used (\d+) registers", done.stderr))),
        "stack": max(int(frame[0]) for frame in frames),
        "spills": max(int(frame[1]) + int(frame[2]) for frame in frames),
        "shared": int(shared[0]) if shared else 0,
        "float64": len(re.findall(r"\.f64", text)),
        "local": len(re.findall(r"(?:ld|st)\.local", text)),
        "fma": len(re.findall(r"fma\.rn(?:\.ftz)?\.f32", text)),
        "mma": len(re.findall(r"mma\.sync", text)),
        "wide": len(re.findall(r"ld\.global(?:\.\w+)*\.v4|st\.global(?:\.\w+)*\.v4", text)),
    }
