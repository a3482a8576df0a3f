"""Compile kernels for a GPU that is not there, and read what they would cost: registers, spills, memory, float64.

Run as a program, `python tests/cuda_ptx.py 80 NAME …`, in a process of its own: which compiler Numba finds is settled when
it is imported. Prints a line of JSON for each kernel; the first line says why nothing can be compiled, if so.
"""

import contextlib
import functools
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def in_wheels(pattern):
    """Files of NVIDIA's wheels."""
    return [path for folder in sys.path for path in sorted(glob.glob(os.path.join(folder, "nvidia", "*", pattern)))]


@functools.cache
def ptxas():
    """The assembler: from a wheel, or the system's toolkit."""
    elsewhere = [shutil.which("ptxas"), *sorted(glob.glob("/usr/local/cuda*/bin/ptxas"))]
    return next(iter([*in_wheels("bin/ptxas"), *filter(None, elsewhere)]), None)


@contextlib.contextmanager
def compiler():
    """Show Numba's own CUDA target the compiler of a wheel, which lies elsewhere than in a toolkit."""
    library, device = in_wheels("lib*/libnvvm.so*") + in_wheels("nvvm/lib*/libnvvm.so*"), in_wheels("nvvm/libdevice")
    with tempfile.TemporaryDirectory() as home:
        if library and device and "CUDA_HOME" not in os.environ:
            folders = Path(home, "nvvm", "lib64"), Path(home, "nvvm", "lib")
            for folder in folders:
                folder.mkdir(parents=True)
                (folder / "libnvvm.so").symlink_to(library[0])
                (folder / Path(library[0]).name).exists() or (folder / Path(library[0]).name).symlink_to(library[0])
            Path(home, "nvvm", "libdevice").symlink_to(device[0])
            os.environ["CUDA_HOME"] = home
        yield


@functools.cache
def obstacle():
    """Why nothing can be compiled here, if so."""
    try:
        from numba import cuda
    except ImportError as error:
        return f"numba.cuda cannot be imported: {error}"
    if ptxas() is None:
        return "no ptxas: pip install '.[cuda-check]'"
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
        "subtractions": len(re.findall(r"sub(?:\.rn)?(?:\.ftz)?\.f32", text)),
        "flushed": len(re.findall(r"(?:add|sub|mul|fma)\S*\.ftz", text)),
        "fma": len(re.findall(r"fma\.rn(?:\.ftz)?\.f32", text)),
        "mma": len(re.findall(r"mma\.sync", text)),
        "wide": len(re.findall(r"ld\.global(?:\.\w+)*\.v4|st\.global(?:\.\w+)*\.v4", text)),
    }


def variants():
    """Every kernel there is, by name: those of a family are declared when they are first wanted."""
    from kernels.cuda import activations, attention, convolution, elementwise, groups, images, matmul, optimizer, rows  # noqa: F401
    from kernels.cuda import attention_backward as backward
    from kernels.cuda import attention_forward as forward
    from kernels.cuda.build import KERNELS

    for form in ("NN", "TN", "NT", "TT"):
        for vector in (True, False):
            matmul.tensor(form, vector)
            for wide in (64, 128):
                matmul.sgemm(form, vector, wide)
    for width in attention.WIDTHS:
        for masked in (False, True):
            for family in (forward.tiles, forward.one_query, backward.keys, backward.queries):
                family(width, masked)
    return KERNELS


def main(arch, names):
    with compiler():
        why = obstacle()
        print(json.dumps(why), flush=True)
        if why is None:
            found = variants()
            for name in names or list(found):
                if found[name].least <= arch:
                    budget = {"registers": found[name].registers, "shared": found[name].shared}
                    print(json.dumps([name, costs(found[name], arch), budget]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
