"""The kernels: each in every backend, for each width of vectors, and the choice of the backend.

The comparisons run in processes of their own (`kernel_cases.py`), two at a time: the width of the vectors is fixed when
the kernels are imported, and an element read out of bounds ends the process, not the tests. What they free is overwritten
at once, so that a kernel that reads freed memory gives a wrong result.
"""

import ast
import inspect
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import kernels
from kernels import reference
from kernels.backends import backend_of
from tests.kernel_cases import KERNELS, SUBJECT

DEEP = os.environ.get("SCRATCHGEN_DEEP", "0") not in ("", "0")  # the other types and widths take minutes to compile
ROOT = Path(__file__).resolve().parent.parent
ALL = ("matmul", "attention", "rows", "elementwise", "activations", "groups", "reductions", "optimizer", "images", "pooling")
RUNS = {  # element type, width of the vectors (0: the machine's), subjects
    "float32": ("f", 0, ALL),
    "float64": ("d", 0, ALL),
    "float32 in 256 bits": ("f", 256, ("matmul", "attention")),
    "float64 in 128 bits": ("d", 128, ("matmul",)),
}
OVERWRITES = {"PYTHONMALLOC": "debug", "MALLOC_PERTURB_": "165"}  # Python's and the C library's allocators fill what is freed
NUMPY = ("erf", "attention_dropout")  # what `cpu` leaves to NumPy and SciPy
HOLDERS = (
    "scratch",
    "__init__",
    "launch",
    "integers",
    "workspace",
)  # these take `.ctypes.data` of what they keep or of an argument


def python(*arguments, **environment):
    """A fresh process in the checkout."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("SCRATCHGEN_")} | {"SCRATCHGEN_KERNELS": "cpu"}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], capture_output=True, text=True, cwd=ROOT, env={**known, **environment}
    )


def cases(letter, bits, subjects):
    environment = {"SCRATCHGEN_SIMD": str(bits)} if bits else {}
    environment |= OVERWRITES
    return python("tests/kernel_cases.py", letter, *subjects, SCRATCHGEN_THREADS="2", **environment)


@pytest.fixture(scope="module")
def runs():
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(cases, *run) for name, run in RUNS.items() if DEEP or name == "float32"}


@pytest.mark.parametrize("name", ["float32", *[pytest.param(name, marks=pytest.mark.deep) for name in list(RUNS)[1:]]])
def test_every_kernel_against_the_reference_between_guard_pages(runs, name):
    done = runs[name].result()
    assert done.returncode == 0, f"ended with {done.returncode} after:\n{done.stdout}\n{done.stderr[-3000:]}"
    wrong = [line for line in done.stdout.splitlines() if line.split("\t")[1] != "0"]
    assert not wrong, "\n".join(wrong)
    if RUNS[name][2] is ALL:  # every kernel was there
        found = {line.split("\t")[0] for line in done.stdout.splitlines()}
        assert found == {name for name in KERNELS if SUBJECT[name] != "convolution"} - set(NUMPY)


@pytest.mark.deep
def test_the_kernels_tests_pass_where_freed_memory_is_overwritten():
    arguments = "-q -W error -p no:cacheprovider -k not(overwritten) tests/test_kernels.py tests/test_kernels_conv.py".split()
    done = python("-m", "pytest", *arguments, **OVERWRITES, SCRATCHGEN_DEEP="")
    assert done.returncode == 0, done.stdout[-3000:]


def whole(x):
    """The name of an array that an expression takes an element or a part of, or its own."""
    return whole(x.value) if isinstance(x, ast.Subscript) else ast.unparse(x)


def named(target, value):
    """The pairs of a name and an expression in an assignment."""
    both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
    for name, x in zip(target.elts, value.elts, strict=False) if both else [(target, value)]:
        yield ast.unparse(name), x


def test_addresses_are_taken_only_where_the_array_is_held():
    """The rule at the head of `kernels/cpu/memory.py`, read off the sources."""
    wrong, taken = [], 0
    for path in sorted((ROOT / "kernels" / "cpu").glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            nodes = list(ast.walk(function))
            arguments = {x.arg for x in nodes if isinstance(x, ast.arg)}
            for name, value in (pair for x in nodes if isinstance(x, ast.Assign) for pair in named(x.targets[0], x.value)):
                made_by = ast.unparse(value.func) if isinstance(value, ast.Call) else whole(value)
                if made_by in {
                    "view",
                    "numba.carray",
                    *arguments,
                }:  # a view of an address, or a part of an argument: the caller holds it
                    arguments.add(name)
            calls = [x for x in nodes if isinstance(x, ast.Call) and ast.unparse(x.func) == "address"]
            taken += len(calls)
            names = [whole(x.args[0]) for x in calls]
            wrong += [f"{path.name}: {function.name} takes address({name})" for name in names if name not in arguments]
            if any(isinstance(x, ast.Attribute) and x.attr == "ctypes" for x in nodes):
                wrong += [f"{path.name}: {function.name} takes .ctypes"] * (function.name not in HOLDERS)
    assert not wrong and taken > 20, wrong


@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda"])
def test_every_backend_has_the_kernels_with_the_same_parameters(backend):
    """A function of the same name, in the module that the entry names: its parameters, their order, kinds and defaults."""
    if backend == "cuda":
        pytest.importorskip("numba.cuda")
    for name, function in KERNELS.items():
        module = reference if backend == "reference" else import_module(f"kernels.{backend}.{SUBJECT[name]}")
        entry, own = (
            [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
            for f in (function, getattr(module, name))
        )
        assert own == entry, f"{backend}: {name}"


def test_what_a_kernel_means_is_said_once():
    """The descriptions of kernels/__init__.py do not stand in the backends again."""
    said = {}
    for name, function in KERNELS.items():
        for line in function.__doc__.splitlines():
            if len(line.strip()) > 20:
                said.setdefault(line.strip().rstrip("."), name)
    for path in {*(ROOT / "kernels").rglob("*.py")} - {ROOT / "kernels" / "__init__.py"}:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and function.name in KERNELS:
                lines = (ast.get_docstring(function) or "").splitlines()
                again = [line for line in lines if line.strip().rstrip(".") in said]
                assert not again, f"{path.relative_to(ROOT)}, {function.name}: {again}"


@pytest.mark.parametrize("index", [-1, 5])
def test_the_guard_pages_guard(index):
    touch = f"""
import sys
sys.path.insert(0, "tests")
import ctypes, kernel_cases
kernel_cases.at_end = {index > 0}
x = kernel_cases.guarded(5, "f")
address = x.__array_interface__["data"][0]
print(ctypes.c_float.from_address(address).value, flush=True)
ctypes.c_float.from_address(address + 4 * {index}).value
"""
    done = python("-c", touch)
    assert done.stdout == "0.0\n"
    assert done.returncode != 0


def test_nothing_is_imported_or_compiled_before_it_is_wanted():
    done = python("-c", "import sys, kernels; print('numba' in sys.modules, 'scipy' in sys.modules, kernels.backend())")
    assert done.stdout == "False False cpu\n", done.stderr


def test_the_compiled_kernels_are_the_default():
    done = python("-c", "import kernels; print(kernels.chosen())", SCRATCHGEN_KERNELS="")
    assert done.stdout.startswith("{'kernels': 'cpu', 'because of': 'the default', 'vectors': "), done.stderr


TRAIN = """
import numpy as np, scratchgen as sg, kernels
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig
rng = np.random.default_rng(0)
text, pictures = rng.integers(0, 65, (12, 65)), rng.random((16, 1, 28, 28)).astype("f")
for make, batch in (
    (lambda: GPT(GPTConfig(65, 64, 2, 4, 64, dropout=0.1)), (text[:, :-1], text[:, 1:])),
    (lambda: VAE(VAEConfig((1, 28, 28))), (pictures, None)),
    (lambda: GAN(GANConfig((1, 28, 28), "dcgan", hidden=16)), (pictures, None)),
):
    found = []
    for backend in ("reference", "cpu"):
        with kernels.use(backend):
            sg.manual_seed(0)
            model = make()
            optimizers = model.optimizers()
            found.append([list(model.training_step(batch, optimizers).values()) for _ in range(4)])
    np.testing.assert_allclose(*found, rtol=2e-3)
    print(type(model).__name__, found[1][-1])
"""


def test_the_models_train_on_the_compiled_kernels_as_on_the_reference():
    """Four steps of each, in float32: the same losses, and the same losses again, bit for bit."""
    first, second = (python("-c", TRAIN) for _ in range(2))
    assert first.returncode == 0, first.stderr[-3000:]
    assert first.stdout == second.stdout and len(first.stdout.splitlines()) == 3


def test_without_a_compiler_the_answers_stay_right():
    program = "import kernels, numpy as np; print(kernels.matmul(np.eye(2), np.eye(2)).sum(), kernels.chosen())"
    done = python("-c", program, NUMBA_DISABLE_JIT="1")
    assert done.stdout.startswith("2.0 {'kernels': 'reference', 'because of': 'NUMBA_DISABLE_JIT is set'}"), done.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("SCRATCHGEN_THREADS", "none"), ("SCRATCHGEN_THREADS", "0"), ("SCRATCHGEN_SIMD", "64")]
)
def test_a_wrong_setting_is_named(name, value):
    done = python("-c", "import kernels; kernels.chosen()", **{name: value})
    assert name in done.stderr.splitlines()[-1]
    assert value in done.stderr.splitlines()[-1]


def test_use_chooses_for_a_block_and_for_good():
    before = kernels.backend()
    with kernels.use("reference"):
        assert kernels.backend() == "reference"
        assert backend_of(np.zeros(2)).matmul is reference
        with kernels.use("cpu"):
            assert kernels.chosen()["because of"] == 'kernels.use("cpu")'
        assert kernels.backend() == "reference"
    assert kernels.backend() == before
    with pytest.raises(ValueError, match="gpu"):
        kernels.use("gpu")


def test_what_is_not_covered_goes_to_the_reference():
    with kernels.use("cpu"):
        whole = np.arange(6).reshape(2, 3)
        assert np.array_equal(kernels.matmul(whole, whole.T), whole @ whole.T)
        assert np.array_equal(kernels.matmul(whole + 1j, whole.T), (whole + 1j) @ whole.T)
        assert kernels.softmax(np.zeros((0, 3), "f")).shape == (0, 3)
        swapped = whole.astype(np.dtype("f").newbyteorder())
        assert np.array_equal(kernels.matmul(swapped, whole.T.astype("f")), whole @ whole.T)
        assert np.array_equal(kernels.matmul(whole.astype("f"), swapped.T, out=np.zeros((2, 2), "f")), whole @ whole.T)
        half = np.arange(6, dtype=np.float16).reshape(2, 3)
        assert np.array_equal(kernels.matmul(half, half.T), half @ half.T)


def test_the_other_byte_order_goes_to_the_reference_and_leaves_no_trace():
    """Numba, once called with such an array, would take every later array for one in that byte order."""
    x = np.linspace(-2, 2, 60).reshape(1, 1, 10, 6).astype("f")
    options = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}

    def adam(x):
        lists = [[abs(x)] for _ in range(4)]
        kernels.adam(*lists, **options)
        return lists[0][0]

    calls = {
        "gelu": lambda x: kernels.gelu(x, approximate="tanh"),
        "dropout": lambda x: kernels.dropout(x, p=0.5, seed=1),
        "softmax": lambda x: kernels.softmax(x, -1),
        "leaky_relu": lambda x: kernels.leaky_relu(x, 0.1),
        "attention": lambda x: kernels.attention(x, x, x)[0],
        "cross_entropy": lambda x: kernels.cross_entropy(x[0, 0], np.zeros(10, int))[0],
        "adam": adam,
    }
    for name, call in calls.items():
        with kernels.use("reference"):
            expected = call(x)
        with kernels.use("cpu"):
            for either in (x, x.astype(x.dtype.newbyteorder()), x):
                np.testing.assert_allclose(call(either), expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("bias", [None, np.zeros(5, "f")])
def test_matmul_names_an_activation_that_it_does_not_know(backend, bias):
    with kernels.use(backend), pytest.raises(ValueError, match="'elu'"):
        kernels.matmul(np.zeros((2, 3), "f"), np.zeros((3, 5), "f"), bias=bias, activation="elu")


def test_out_may_be_an_operand():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 40, 40))
    with kernels.use("cpu"):
        c, d = a.copy(), a.copy()
        assert kernels.matmul(c, b, out=c) is c
        kernels.matmul(a, b, out=d, bias=d[0])
    np.testing.assert_allclose(c, a @ b, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(d, a @ b + a[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["embedding", "cross_entropy", "scatter_add", "nearest"])
def test_an_index_out_of_range_raises(name):
    index = np.full(1000, 7)
    arguments = {
        "embedding": (np.zeros((7, 64), "f"), index),
        "cross_entropy": (np.zeros((1000, 7), "f"), index),
        "scatter_add": (np.zeros((7, 64), "f"), index, np.zeros((1000, 64), "f")),
        "nearest": (np.zeros((1, 1, 7, 7), "f"), np.arange(7), index),
    }
    for backend in ("reference", "cpu"):
        with kernels.use(backend), pytest.raises(IndexError):
            getattr(kernels, name)(*arguments[name])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_sum_over_very_many_float32_is_as_right_as_a_short_one(backend):
    """Added one by one in float32, a million rows of 0.1 come to 1 % more than they should."""
    x = np.full((1_000_000, 3), 0.1, np.float32)
    with kernels.use(backend):
        np.testing.assert_allclose(kernels.column_sums(x), 1e6 * np.float64(x[0]), rtol=1e-6)
        one = kernels.binary_cross_entropy(x[:1], x[:1], total=True)
        np.testing.assert_allclose(kernels.binary_cross_entropy(x, x, total=True), 1e6 * np.float64(one), rtol=1e-6)


def test_the_same_bits_every_time():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200, 200)).astype("f")
    q = rng.standard_normal((2, 3, 150, 16)).astype("f")
    with kernels.use("cpu"):
        for once in (lambda: kernels.matmul(a, b), lambda: kernels.attention(q, q, q)[0]):
            first = once()
            assert all(np.array_equal(first, once()) for _ in range(5))


def test_attention_over_long_rows_needs_no_matrix():
    """T = 4096 for one head: the weights alone would be 64 MB; inputs, output and workspace are under 16."""
    program = """
import resource, numpy as np, kernels
q = np.ones((1, 4096, 64), "f")
kernels.attention(q[:, :64], q[:, :64], q[:, :64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kernels.attention(q, q, q)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = python("-c", program)
    assert float(done.stdout) < 16, done.stderr


def test_dropout_keeps_what_it_should_and_repeats_itself():
    x = np.ones(100_001, "f")
    with kernels.use("cpu"):
        y = kernels.dropout(x, p=0.25, seed=1)
        again, other = kernels.dropout(x, p=0.25, seed=1), kernels.dropout(x, p=0.25, seed=1, stream=1)
    kept = y != 0
    assert np.array_equal(y, again)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / x.size)
    np.testing.assert_allclose(y[kept], 1 / 0.75, rtol=1e-6)
    assert abs((kept & (other != 0)).mean() - 0.75**2) < 0.01  # streams are independent


def test_philox_is_the_published_one():
    """The known answers that come with Random123: counter and key of zeros."""
    words = reference.philox(np.zeros(1, int), seed=0)[:, 0]
    assert [hex(int(w)) for w in words] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (70, 130, 10, 7), (5, 261, 16, 24)])
def test_each_step_of_the_ladder_is_attention(shape):
    from kernels.cpu.attention_ladder import BACKWARD, FORWARD

    (t, s, d, e), rng = shape, np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal(size).astype("f") for size in ((t, d), (s, d), (s, e), (t, e)))
    out, statistics = reference.attention(q, k, v)
    lse = (statistics[0] - np.log(statistics[1]))[:, 0]
    for step in FORWARD.values():
        found, kept = step(q, k, v)
        wanted = {1: lse, 2: reference.softmax(q @ k.T * np.float32(d**-0.5)), 3: statistics}[kept.ndim]
        np.testing.assert_allclose(found, out, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(kept, wanted, rtol=1e-4, atol=1e-5)
    grads = reference.attention_backward(dout, q, k, v, out, statistics)[:3]
    for before, step in BACKWARD.values():
        for found, wanted in zip(step(q, k, v, FORWARD[before](q, k, v)[1], out, dout), grads, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_each_step_of_the_ladder_is_a_product():
    from kernels.cpu.ladder import LADDER

    rng = np.random.default_rng(0)
    for m, k, n in ((1, 1, 1), (7, 0, 3), (70, 67, 300), (8, 64, 256)):
        a, b = rng.standard_normal((m, k)).astype("f"), rng.standard_normal((k, n)).astype("f")
        for name, step in LADDER.items():
            c = np.full((m, n), np.nan, "f")
            step(a, b, c)
            np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-4, err_msg=name)
