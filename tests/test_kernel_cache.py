"""Compiled kernels on disk: whatever happens to the files, the folder or the compiling process, the same bits and one remark.

Each case is a process of its own, with one small kernel or, where bits count, the softmax: Numba's sums come out otherwise
when a kernel runs in the process that has compiled it.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")
from kernels.cpu import build

ROOT = Path(__file__).resolve().parent.parent
ANNOUNCED = "compiling kernels, once: up to a minute\n"
LOST = "compiled kernels cannot be kept, so each process compiles its own: "
SMALL = """
import ctypes, numpy as np
from kernels.cpu import build
from kernels.cpu.convolution_loops import add
to, of = np.arange(3, dtype="f"), np.ones(3, "f")
ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(add["f"])(to.ctypes.data, of.ctypes.data, 3)
print(to, build.compile_seconds()[0], build.kept())
"""
ADDED = "[1. 2. 3.]"
SOFTMAX = """
import hashlib, numpy as np, kernels
from kernels.cpu import build
y = kernels.softmax(np.random.default_rng(0).standard_normal((300, 700), "f"), -1)
print(hashlib.sha256(y).hexdigest(), build.compile_seconds()[0])
"""


def python(program, cache, before="", cwd=ROOT, **environment):
    known = {k: v for k, v in os.environ.items() if not k.startswith(("SCRATCHGEN_", "PYTHON"))}
    known |= {"SCRATCHGEN_KERNELS": "cpu", "NUMBA_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-c", before + program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=known | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder in which the small kernel is kept."""
    cache = tmp_path_factory.mktemp("cache")
    assert python(SMALL, cache) == (f"{ADDED} 1 kept in {the_folder(cache)}\n", ANNOUNCED)
    return cache


@pytest.fixture
def copied(small, tmp_path):
    return shutil.copytree(small, tmp_path / "cache")


@pytest.fixture(scope="module")
def softmax(tmp_path_factory):
    """A folder in which the softmax is kept, and the digest of what it gave when it was compiled."""
    cache = tmp_path_factory.mktemp("softmax")
    said, announced = python(SOFTMAX, cache)
    digest, count = said.split()
    assert (count, announced) == ("4", ANNOUNCED)  # the softmax, and three that make the pool of threads
    return cache, digest


def the_folder(cache):
    (folder,) = cache.glob("kernels-*")
    return folder


def the_file(cache):
    (file,) = the_folder(cache).iterdir()
    return file


def test_the_second_process_loads_the_same_bits(softmax):
    cache, digest = softmax
    assert python(SOFTMAX, cache) == (f"{digest} 0\n", "")


def test_another_checkout_of_the_same_sources_shares_the_kernels(softmax, tmp_path):
    cache, digest = softmax
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", copy_function=shutil.copy)  # and is younger
    assert python(SOFTMAX, cache, cwd=tmp_path) == (f"{digest} 0\n", "")


def test_another_source_compiles_its_own(copied, tmp_path):
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    with (tmp_path / "kernels" / "cpu" / "images.py").open("a") as file:
        file.write("# a line\n")
    said, announced = python(SMALL, copied, cwd=tmp_path)
    assert (said.split(" kept")[0], announced) == (f"{ADDED} 1", ANNOUNCED)
    assert len(list(copied.iterdir())) == 2


@pytest.mark.parametrize("name", build.CONFIG)
def test_another_setting_of_the_compiler_is_another_folder(monkeypatch, name):
    before = build._depends_on()
    assert build._depends_on() == before
    monkeypatch.setattr(build.numba.config, name, "another")
    assert build._depends_on() != before


@pytest.mark.parametrize("module", [build.np, build.numba, build.llvmlite])
def test_another_version_is_another_folder(monkeypatch, module):
    before = build._depends_on()
    monkeypatch.setattr(module, "__version__", "another")
    assert build._depends_on() != before


CODE = bytes(range(256)) * 4
DAMAGES = {
    "empty": lambda kept: b"",
    "no seal": lambda kept: kept[:20],
    "seal only": lambda kept: kept[:32],
    "cut short": lambda kept: kept[:-1],
    "one bit": lambda kept: kept[:500] + bytes([kept[500] ^ 1]) + kept[501:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_none(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert build._read("a.kernel.f") is None
    build._write("a.kernel.f", CODE)
    assert build._read("a.kernel.f") == CODE
    file = the_file(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    assert build._read("a.kernel.f") is None
    build._write("a.kernel.f", CODE)
    assert build._read("a.kernel.f") == CODE


def sealed(code):
    return hashlib.sha256(code).digest() + code


@pytest.mark.parametrize("damage", [DAMAGES["empty"], lambda kept: sealed(b"not a kernel")], ids=["empty", "foreign"])
def test_what_is_no_kernel_is_compiled_again_and_replaced(copied, damage):
    file = the_file(copied)
    file.write_bytes(damage(file.read_bytes()))
    said, announced = python(SMALL, copied)
    assert (said.split(" kept")[0], announced) == (f"{ADDED} 1", ANNOUNCED)
    assert python(SMALL, copied)[0].startswith(f"{ADDED} 0 kept")


def test_a_folder_in_the_place_of_a_file_costs_that_kernel_only(copied):
    file = the_file(copied)
    file.unlink()
    file.mkdir()
    said, announced = python(SMALL, copied)
    assert said.startswith(f"{ADDED} 1 not kept: ") and announced.startswith(ANNOUNCED + LOST)
    assert [x.name for x in the_folder(copied).iterdir()] == [file.name]


def test_what_is_printed_when_python_starts_is_no_answer(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nprint('hello')\nprint('there', file=sys.stderr)\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    said, announced = python(SMALL, tmp_path / "cache", PYTHONPATH=path)
    assert said == f"hello\n{ADDED} 1 kept in {the_folder(tmp_path / 'cache')}\n"
    assert announced == "there\n" + ANNOUNCED


def test_a_kernels_py_where_the_program_runs_does_not_reach_the_compiling_process(tmp_path):
    (tmp_path / "kernels.py").write_text("raise ImportError('the wrong one')\n")
    before = f"import sys; sys.path[0] = {str(ROOT)!r}\n"
    assert python(SMALL, tmp_path / "cache", before, cwd=tmp_path)[0].startswith(f"{ADDED} 1 kept")


FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
HOMELESS = """
import os, pathlib
os.environ.pop("NUMBA_CACHE_DIR")
os.environ.pop("XDG_CACHE_HOME", None)
def home():
    raise RuntimeError("Could not determine home directory.")
pathlib.Path.home = home
"""
TWO = "from kernels.cpu.convolution_loops import add; add['f']\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize(
    ("before", "why"), [(FULL, "File too large"), (HOMELESS, "there is no home directory")], ids=["full disk", "no home"]
)
def test_without_a_place_to_keep_kernels_there_is_one_remark_and_the_same_bits(softmax, tmp_path, before, why):
    said, remarks = python(SOFTMAX, tmp_path / "cache", before + TWO)
    assert said == f"{softmax[1]} 5\n"
    assert remarks.startswith(ANNOUNCED + LOST) and why in remarks and remarks.count("\n") == 2
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path):
    (tmp_path / "file").touch()
    said, remarks = python(SMALL, tmp_path / "file")
    assert said.startswith(f"{ADDED} 1 not kept: ")
    assert remarks.startswith(ANNOUNCED + LOST) and remarks.count("\n") == 2


def test_processes_that_compile_at_the_same_time_agree(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda _: python(SMALL, tmp_path)[0], range(2)))
    assert all(line.startswith(ADDED) for line in said)
    assert the_file(tmp_path).name == "kernels.cpu.convolution_loops.add.f"  # and nothing unfinished beside it
    assert python(SMALL, tmp_path)[0].startswith(f"{ADDED} 0 kept")


@pytest.mark.parametrize(
    "before",
    [
        "import sys; sys.executable = None\n",
        "import sys; sys.executable = '/nonexistent/python'\n",
        "from kernels.cpu import build; build.depends_on = lambda: 64 * '0'\n",  # edited since this process began
    ],
    ids=["none", "gone", "other sources"],
)
def test_without_a_compiling_process_this_one_compiles_and_keeps_nothing(tmp_path, before):
    said, remarks = python(SMALL, tmp_path, before)
    assert said.startswith(f"{ADDED} 1 not kept: ") and remarks.startswith(ANNOUNCED + LOST) and remarks.count("\n") == 2
    assert not list(tmp_path.iterdir())


class Unheard(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def test_nobody_has_to_listen(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stderr in (None, closed, Unheard()):
        monkeypatch.setattr(sys, "stderr", stderr)
        progress = build._Progress()
        progress.start()
        progress.cannot_keep("no space")
        progress.end()
        progress.finish()
        assert progress.count == 1 and progress.lost == "no space"


def test_the_line_on_a_terminal_counts_the_kernels(monkeypatch, capsys):
    monkeypatch.setattr(build._Progress, "_terminal", staticmethod(lambda: True))
    progress = build._Progress()
    progress.start()
    progress.cannot_keep("no space")
    progress.cannot_keep("no space, again")
    progress.end()
    progress.start()
    progress.end()
    progress.finish()
    one, two = "\rcompiling 1 kernel, once: 0 s", "\rcompiling 2 kernels, once: 0 s"
    assert capsys.readouterr().err == f"{one}\n{LOST}no space\n{one}{two}{two}\n"
    assert progress.count == 2 and np.isclose(progress.seconds, 0, atol=0.5)
