"""Every door of `kernels.cuda` against the reference: in the emulator, where the order of the threads is chosen, and, with
`pytest -m gpu`, on a GPU.

Cases are small and odd: the emulator is Python. What it runs is the source that a GPU runs, statement by statement.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scratchgen as sg
from kernels import backends, reference
from scratchgen import device
from scratchgen import functional as F
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig
from tests import standin
from tests.kernel_cases import SUBJECT

pytest.importorskip("numba.cuda")

from kernels.cuda import activations, attention, build, convolution, elementwise, images, maps, matmul, optimizer, rows
from kernels.cuda import groups as group_kernels

try:
    from tests import cuda_emulator as emulator
except ImportError:  # on a machine with a GPU, one can do without
    emulator = None

ROOT = Path(__file__).resolve().parent.parent
DEEP = os.environ.get("SCRATCHGEN_DEEP", "0") not in ("", "0")
MODULES = {
    "matmul": matmul,
    "attention": attention,
    "rows": rows,
    "elementwise": elementwise,
    "activations": activations,
    "groups": group_kernels,
    "convolution": convolution,
    "images": images,
    "optimizer": optimizer,
}
ORDERS = ("forward", "reverse", "shuffled")
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The table: door, arguments, options
# ---------------------------------------------------------------------------------------------------------------------


def matmul_cases():
    for m, k, n in ((1, 1, 1), (5, 7, 3), (0, 2, 3), (3, 0, 2), (66, 17, 5), (64, 20, 64)):
        for turned_a, turned_b in itertools.product((False, True), repeat=2):
            if m > 60 and turned_a != (turned_b if m == 64 else not turned_b):
                continue
            a = normal(k, m).T if turned_a else normal(m, k)
            b = normal(n, k).T if turned_b else normal(k, n)
            yield (a, b), {}
    for a, b in (((2,), (2,)), ((1,), (3,)), ((), (2,)), ((2, 1), (3,)), ((2, 3), (3,))):
        yield (normal(*a, 3, 5), normal(*b, 5, 4)), {}
    yield (normal(6, 10)[::2, ::2], np.broadcast_to(normal(5, 1), (5, 4))), {}
    yield (normal(3, 70), normal(70, 2)), {}  # few elements of a long sum: it is cut into parts
    for activation, bias in itertools.product((None, "relu", "gelu", "gelu_tanh"), (None, normal(4), normal(3, 1))):
        yield (normal(3, 5), normal(5, 4)), {"bias": bias, "activation": activation}
    yield (normal(3, 5), normal(5, 4)), {"out": normal(3, 4), "bias": normal(4)}
    yield (normal(3, 5), normal(5, 4)), {"out": normal(4, 3).T}
    yield (normal(3, 5).astype(np.float64), normal(5, 4).astype(np.float64)), {"bias": normal(4).astype(np.float64)}
    yield (np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2)), {}


def attention_cases():
    def dead(t, s):
        mask = np.where(normal(t, s) < 0, -np.inf, 0).astype(np.float32)
        mask[:2] = -np.inf  # rows that may attend to nothing
        return mask

    for q_lead, k_lead, t, s, d, e, causal, mask in (
        ((), (), 1, 1, 1, 1, True, None),
        ((2,), (2,), 1, 9, 32, 32, False, normal(2, 1, 9)),  # one query
        ((), (), 1, 6, 64, 60, False, dead(1, 6)),
        ((1,), (1,), 35, 40, 8, 5, False, None),  # two tiles of keys
        ((1,), (1,), 66, 34, 32, 32, True, None),  # two tiles of queries as well
        ((2,), (), 3, 4, 6, 6, False, dead(3, 4)),
        ((2, 2), (2, 2), 3, 5, 4, 4, False, normal(2, 1, 1, 5)),
        ((2, 2), (2, 2), 3, 5, 4, 4, True, normal(1, 2, 3, 1)),
        ((1,), (1,), 3, 4, 64, 64, True, None),
        ((1,), (1,), 3, 4, 128, 100, False, None),
        ((1,), (1,), 3, 5, 130, 4, True, dead(3, 5)),  # no kernel is so wide
        ((1,), (1,), 0, 5, 4, 4, False, None),
        ((1,), (1,), 4, 0, 4, 4, False, None),
    ):
        arrays = normal(*q_lead, t, d), normal(*k_lead, s, d), normal(*k_lead, s, e)
        yield arrays, {"causal": causal, "mask": mask, "scale": None if t > 3 else 0.5}
    yield tuple(np.moveaxis(normal(1, 5, 2, 8), 1, 2) for _ in range(3)), {"causal": True}
    yield tuple(normal(2, 5, 4) for _ in range(3)), {"dropout_p": 0.4, "seed": 9, "stream": 1, "causal": True}


def attention_backward_cases():
    for i, ((q, k, v), options) in enumerate(attention_cases()):
        if i == 3:
            options |= {"causal": True}  # tiles that are passed over, wholly and in part
        out, statistics = reference.attention(q, k, v, **options)
        yield (normal(*out.shape), q, k, v, out, statistics), options
    q, k, v = normal(2, 3, 4), normal(1, 5, 4), normal(5, 4)
    into = [np.empty_like(x) for x in (q, k, v)]
    noise = {"dropout_p": 0.4, "seed": 9}
    yield (normal(2, 3, 4), q, k, v, *reference.attention(q, k, v)), {"into": into}
    yield (normal(2, 3, 4), q, k, v, *reference.attention(q, k, v, **noise)), noise
    q, k, v, mask = normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 4), normal(2, 3, 5)
    yield (normal(2, 3, 4), q, k, v, *reference.attention(q, k, v, mask=mask)), {"mask": mask, "mask_grad": True}


def images():
    """x, w, geometry"""
    for n, c, size, o, kernel, stride, padding, dilation, groups in (
        (2, 3, (5, 6), 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
        (2, 4, (6, 5), 6, (3, 2), (2, 1), (1, 1), (1, 1), 2),
        (1, 2, (9, 8), 2, (2, 3), (3, 2), (2, 0), (2, 1), 1),
        (1, 3, (7, 7), 3, (2, 2), (3, 3), (0, 0), (1, 1), 3),  # pixels that no window meets
        (2, 3, (9,), 4, (3,), (2,), (1,), (1,), 1),
        (0, 3, (5, 6), 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ):
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        yield normal(n, c, *size), normal(o, c // groups, *kernel), geometry


def conv_cases():
    for x, w, geometry in images():
        yield (x, w), geometry


def conv_input_grad_cases():
    for x, w, geometry in images():
        yield (normal(*reference.conv(x, w, **geometry).shape), w, x.shape[2:]), geometry


def conv_weight_grad_cases():
    for x, w, geometry in images():
        yield (x, normal(*reference.conv(x, w, **geometry).shape), w.shape[2:]), geometry


def row_inputs():
    for n, width in ((1, 1), (3, 5), (2, 130), (0, 4)):
        yield normal(n, width)
    special = 3 * normal(4, 6)
    special[1], special[2, 3] = -np.inf, -np.inf
    yield special
    yield normal(4, 10)[:, ::2]


def softmax_cases():
    for x in row_inputs():
        yield (x,), {"axis": -1}
        yield (x,), {"axis": 0}
    yield (normal(2, 3, 4),), {"axis": 1}
    yield (normal(3, 4).astype(np.float64),), {}


def cross_entropy_cases():
    for x in row_inputs():
        target = np.arange(len(x)) % x.shape[1]
        target[1::3] = -100
        yield (x, target), {}
    yield (normal(3, 4), np.array([1, 0, 3], np.int32)), {"ignore_index": 0}


def cross_entropy_backward_cases():
    for (x, target), options in cross_entropy_cases():
        yield (normal(len(x)), x, target, reference.cross_entropy(x, target, **options)[1]), options


def norm_inputs():
    for n, width in ((1, 1), (3, 5), (2, 130), (70, 33)):
        yield normal(n, width), normal(width), normal(width)
    yield normal(5, 4)[:, ::2], normal(2), normal(2)
    yield normal(3, 4).astype(np.float64), normal(4).astype(np.float64), normal(4).astype(np.float64)


def layer_norm_cases():
    for arguments in norm_inputs():
        yield arguments, {"eps": 1e-5}


def layer_norm_backward_cases():
    for x, w, b in norm_inputs():
        yield (normal(*x.shape).astype(x.dtype), x, w, *reference.layer_norm(x, w, b)[1:]), {}


def rms_norm_cases():
    for x, w, _ in norm_inputs():
        yield (x, w), {"eps": 1e-6}


def rms_norm_backward_cases():
    for x, w, _ in norm_inputs():
        yield (normal(*x.shape).astype(x.dtype), x, w, reference.rms_norm(x, w)[1]), {}


def batch_norm_cases():
    for shape in ((3, 2), (2, 3, 5), (2, 3, 4, 5), (70, 1, 3)):
        yield (normal(*shape), normal(shape[1]), normal(shape[1])), {}


def group_norm_cases():
    for shape, groups in (((3, 2), 1), ((2, 6, 5), 3), ((2, 4, 4, 5), 4), ((70, 1, 3), 1), ((1, 2, 140), 2)):
        yield (normal(*shape), normal(shape[1]), normal(shape[1]), groups), {"eps": 1e-4}
    yield (normal(2, 8, 3)[:, ::2], normal(4), normal(4), 2), {}
    yield tuple(x.astype(np.float64) for x in (normal(2, 4, 3), normal(4), normal(4))) + (2,), {}


def group_norm_backward_cases():
    for (x, w, b, groups), options in group_norm_cases():
        yield (normal(*x.shape).astype(x.dtype), x, w, *reference.group_norm(x, w, b, groups, **options)[1:]), {}


def batch_norm_backward_cases():
    for (x, w, b), _ in batch_norm_cases():
        yield (normal(*x.shape), x, w, *reference.batch_norm(x, w, b)[1:]), {}


def each():
    yield normal(7)
    yield 4 * normal(3, 200)
    yield np.array([-100.0, 100.0, 0.0, -0.0], np.float32)
    yield normal(4, 6)[:, ::2]
    yield normal(0, 3)
    yield np.asarray(normal(1)[0])
    yield normal(3).astype(np.float64)


def map_cases(*options):
    def cases():
        for x, chosen in itertools.product(each(), options or ({},)):
            yield (x,), chosen

    return cases


def map_backward_cases(*options):
    def cases():
        for x, chosen in itertools.product(each(), options or ({},)):
            yield (np.asarray(normal(*x.shape)).astype(x.dtype), x), chosen

    return cases


EXTREME = np.array([-np.inf, np.inf, np.nan, -100, 100, 0], np.float32)
SOFTPLUS = {}, {"beta": 0.5, "threshold": 1.0}, {"beta": -1.0, "threshold": np.inf}
ELU = {}, {"alpha": 0.3, "scale": 2.0, "rate": 1.5}, {"rate": -0.01}


def curve_cases(*options):
    def cases():
        yield from map_cases(*options)()
        for chosen in options or ({},):
            yield (EXTREME,), chosen

    return cases


def curve_backward_cases(*options, of=lambda x: x):
    def cases():
        for (dy, x), chosen in map_backward_cases(*options)():
            yield (dy, np.asarray(of(x))), chosen
        for chosen in options or ({},):
            yield (np.ones(6, np.float32), of(EXTREME)), chosen

    return cases


def glu_cases():
    for shape, axis in (((4,), 0), ((3, 10), -1), ((2, 6, 5), 1), ((4, 3), 0), ((0, 4), 1)):
        yield (normal(*shape), axis), {}
    yield (normal(6, 5).T, -1), {}
    yield (normal(4, 6).astype(np.float64), 0), {}


def glu_backward_cases():
    for (x, axis), _ in glu_cases():
        yield (normal(*reference.glu(x, axis).shape).astype(x.dtype), x, axis), {}


def softmax_backward_cases():
    for x in row_inputs():
        for axis in (-1, 0):
            yield (normal(*x.shape), reference.softmax(x, axis), axis), {}
    yield tuple(normal(2, 3).astype(np.float64) for _ in range(2)), {}


def dropout_cases():
    for x, p in itertools.product(each(), (0.0, 0.3, 1.0)):
        yield (x,), {"p": p, "seed": 12345678901, "stream": 7}
    yield (normal(9),), {"p": 0.5, "seed": 2**64 - 5, "stream": 2**63 + 1}


def column_sums_cases():
    for shape in ((70, 40), (1, 3), (5, 0), (0, 4)):
        yield (normal(*shape),), {}
    yield (normal(6, 5).astype(np.float64).T,), {}


def embedding_cases():
    index = np.array([[0, 3, -1], [2, 2, 0]])
    for shape in ((4, 3), (4, 2, 2)):
        yield (normal(*shape), index), {}
    yield (normal(4, 3), index.astype(np.int32)), {}
    yield (normal(4, 3), np.zeros((0,), np.int64)), {}
    yield (np.arange(12).reshape(4, 3), index), {}


def scatter_add_cases():
    index = np.array([[0, 3, -1], [2, 2, 0], [0, 0, 3]])
    for shape in ((5, 3), (5,), (5, 2, 2)):
        yield (normal(*shape), index, normal(3, 3, *shape[1:])), {}
    yield (normal(5, 3), np.zeros(0, np.int64), normal(0, 3)), {}
    yield (normal(3, 5).T, index, normal(3, 3, 3)), {}
    yield (normal(5, 3).astype(np.float64), index, normal(3, 3, 3).astype(np.float64)), {}


def adam_cases():
    for decay in (0.0, 0.1):
        options = {"step": 3, "lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": decay}
        shapes = (1,), (300,), (0,), (), (2, 3)
        *arrays, squares = ([np.asarray(normal(*shape)) for shape in shapes] for _ in range(4))
        yield (*arrays, [np.abs(v, out=v) for v in squares]), options
    turned = [normal(3, 2).T], [normal(2, 3)], [normal(2, 3)], [abs(normal(2, 3))]
    yield turned, {**options, "step": 1}
    yield tuple([x.astype(np.float64) for x in xs] for xs in turned), options


def sum_of_squares_cases():
    yield ([normal(3), normal(20, 500), normal(0), normal(6, 5)[:, ::2]],), {}
    yield ([normal(3).astype(np.float64)],), {}


def scale_cases():
    yield ([normal(3), normal(2, 5)], 0.3), {}


def leaky_relu_cases():
    for x, slope in itertools.product(each(), (0.0, 0.2)):
        yield (x, slope), {}
    yield (np.array([-np.inf, np.inf, np.nan, 0.0], np.float32), 0.0), {}


def leaky_relu_backward_cases():
    for (x, slope), _ in leaky_relu_cases():
        yield (np.asarray(normal(*x.shape)).astype(x.dtype), reference.leaky_relu(x, slope), slope), {}


def binary_cross_entropy_cases():
    for x in each():
        yield (x, np.asarray(abs(normal(*x.shape))).astype(x.dtype)), {}


def binary_cross_entropy_backward_cases():
    for (x, t), _ in binary_cross_entropy_cases():
        yield (np.asarray(normal(*x.shape)).astype(x.dtype), x, t), {}


def nearest_cases():
    yield (normal(2, 3, 4, 5), np.arange(8) // 2, np.arange(10) // 2), {}
    yield (normal(1, 2, 4, 5)[..., ::2], np.array([0, 3, 3]), np.array([1, 2])), {}
    yield (normal(0, 2, 4, 5), np.array([0, 3]), np.array([1, 2])), {}


def nearest_backward_cases():
    for (x, i, j), _ in nearest_cases():
        yield (normal(*reference.nearest(x, i, j).shape), i, j, x.shape[-2:]), {}


def attention_dropout_cases():
    for shape, p in (((2, 3, 5, 4), 0.3), ((7, 3), 0.5), ((1, 2), 1.0)):
        yield (normal(*shape),), {"p": p, "seed": 2**40 + 3, "stream": 2}


GELUS = {"approximate": "none"}, {"approximate": "tanh"}
CASES = {
    "matmul": matmul_cases,
    "attention": attention_cases,
    "attention_backward": attention_backward_cases,
    "conv": conv_cases,
    "conv_input_grad": conv_input_grad_cases,
    "conv_weight_grad": conv_weight_grad_cases,
    "column_sums": column_sums_cases,
    "softmax": softmax_cases,
    "log_softmax": softmax_cases,
    "cross_entropy": cross_entropy_cases,
    "cross_entropy_backward": cross_entropy_backward_cases,
    "layer_norm": layer_norm_cases,
    "layer_norm_backward": layer_norm_backward_cases,
    "rms_norm": rms_norm_cases,
    "rms_norm_backward": rms_norm_backward_cases,
    "batch_norm": batch_norm_cases,
    "batch_norm_backward": batch_norm_backward_cases,
    "group_norm": group_norm_cases,
    "group_norm_backward": group_norm_backward_cases,
    "sigmoid": curve_cases(),
    "sigmoid_backward": curve_backward_cases(of=reference.sigmoid),
    "tanh_backward": curve_backward_cases(of=np.tanh),
    "softplus": curve_cases(*SOFTPLUS),
    "softplus_backward": curve_backward_cases(*SOFTPLUS),
    "elu": curve_cases(*ELU),
    "elu_backward": curve_backward_cases(*ELU),
    "mish": curve_cases(),
    "mish_backward": curve_backward_cases(),
    "glu": glu_cases,
    "glu_backward": glu_backward_cases,
    "softmax_backward": softmax_backward_cases,
    "log_softmax_backward": softmax_backward_cases,
    "gelu": map_cases(*GELUS),
    "gelu_backward": map_backward_cases(*GELUS),
    "silu": curve_cases(),
    "silu_backward": curve_backward_cases(),
    "erf": map_cases(),
    "dropout": dropout_cases,
    "embedding": embedding_cases,
    "scatter_add": scatter_add_cases,
    "adam": adam_cases,
    "adamw": adam_cases,
    "sum_of_squares": sum_of_squares_cases,
    "scale": scale_cases,
    "leaky_relu": leaky_relu_cases,
    "leaky_relu_backward": leaky_relu_backward_cases,
    "binary_cross_entropy": binary_cross_entropy_cases,
    "binary_cross_entropy_backward": binary_cross_entropy_backward_cases,
    "nearest": nearest_cases,
    "nearest_backward": nearest_backward_cases,
    "attention_dropout": attention_dropout_cases,
}
SLOW = {"attention_backward": (1, 2, 4, 6, 7, 9, 13, 14)}  # they take the emulator a second each: in its deep run only
IN_PLACE = {"scatter_add": (0,), "adam": (0, 2, 3), "adamw": (0, 2, 3), "scale": (0,)}


# ---------------------------------------------------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------------------------------------------------


EMULATED = 99  # the compute capability of no GPU


class Place:
    """Where the kernels run: arrays go there and come back."""

    def __init__(self, there, back, capability=EMULATED):
        self.there, self.back, self.capability = there, back, capability


def emulation(monkeypatch, orders):
    """The stand-in's arrays and the emulator, each launch in the next of `orders`; what a door allocates begins as NaN."""
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
    for module in [*MODULES.values(), maps]:
        monkeypatch.setattr(module, "empty", poisoned)
    return Place(lambda x: standin.wrapped(x.copy(order="K")), lambda x: x.host)


@pytest.fixture
def doors_close_again():
    """As far as this test goes, and no further, the kernels look where their arrays are."""
    yield
    device._kept.cache_clear()
    backends.choice.device = None


@pytest.fixture
def emulated(monkeypatch):
    return emulation(monkeypatch, ORDERS)


@pytest.fixture(params=[*(ORDERS if DEEP else ["in turn"]), pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request, monkeypatch):
    """The emulator, everyday with the orders in turn and in the deep run with each; and a GPU."""
    if request.param != "gpu":
        return emulation(monkeypatch, [request.param] if request.param in ORDERS else ORDERS)
    if device.obstacle():
        pytest.skip(device.obstacle())
    library = device.library()
    monkeypatch.setattr(matmul, "LEAST", 32)
    return Place(library.asarray, library.asnumpy, library.cuda.runtime.getDeviceProperties(0)["major"])


def room(door):
    return MODULES[SUBJECT[door]]


def mapped(change, x):
    """x with every array in it, also in lists, changed."""
    return [mapped(change, y) for y in x] if isinstance(x, list) else change(x) if isinstance(x, np.ndarray) else x


def wrong(place, module, door, arguments, options, tolerance=2e-5):
    """What is wrong with one case, or None."""
    expected = mapped(np.copy, list(arguments))
    wanted = getattr(reference, door)(*expected, **{k: mapped(np.copy, v) for k, v in options.items()})
    given, found_options = mapped(place.there, list(arguments)), {k: mapped(place.there, v) for k, v in options.items()}
    found = getattr(module, door)(*given, **found_options)
    changed = IN_PLACE.get(door, ())
    for i, (x, y) in enumerate(zip(given, expected, strict=True)):
        for mine, theirs in zip(x, y, strict=True) if isinstance(y, list) else [(x, y)]:
            exactly = tolerance if i in changed else 0
            if isinstance(theirs, np.ndarray) and (problem := difference(place.back(mine), theirs, exactly)):
                return f"argument {i}: {problem}"
    if "out" in options and found is not found_options["out"]:
        return "out= was not returned"
    for i, (x, y) in enumerate(zip(listed(found), listed(wanted), strict=True)):
        if (x is None) != (y is None):
            return f"result {i}: expected {y}, got {x}"
        x = np.asarray(x) if isinstance(x, float) else x if x is None else place.back(x)
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


@pytest.mark.parametrize("door", CASES)
def test_every_door_is_the_reference(place, door):
    with np.errstate(all="ignore"):
        for i, (arguments, options) in enumerate(CASES[door]()):
            if place.capability == EMULATED and not DEEP and i in SLOW.get(door, ()):
                continue
            problem = wrong(place, room(door), door, arguments, options)
            shapes = mapped(np.shape, list(arguments))
            assert problem is None, f"case {i}, {shapes} {options}: {problem}"


def test_every_door_has_cases():
    own = {door for door, name in SUBJECT.items() if name in MODULES and room(door).__dict__[door] is not vars(reference)[door]}
    assert set(CASES) == own


@pytest.mark.parametrize("step", ["naive", "tiled", "blocked"])
def test_each_step_of_the_ladder_is_a_product(place, step):
    for m, k, n in ((1, 1, 1), (17, 19, 18), (130, 9, 3)):
        a, b = normal(1, m, k), normal(1, k, n)
        c = place.there(np.full((1, m, n), np.nan, np.float32))
        kernel = getattr(matmul, step)
        tile = {"naive": 0, "tiled": 16, "blocked": 128}[step]
        blocks = -(-m // tile) * -(-n // tile) if tile else -(-m * n // 256)
        build.launch(kernel, blocks, place.there(a), place.there(b), c)
        assert difference(place.back(c), a @ b, 1e-5) is None


FORMS = [("NN", True)]
MORE = [(form, vector) for form in ("NN", "TN", "NT", "TT") for vector in (True, False) if (form, vector) not in FORMS]


@pytest.mark.parametrize("form, vector", FORMS + [pytest.param(*more, marks=pytest.mark.deep) for more in MORE])
@pytest.mark.parametrize("wide", [128, "tensor"])
def test_the_wide_tiles(place, form, vector, wide):
    """Two tiles, one of them at an edge, with a rest of k; TF32 as the product of rounded factors."""
    if wide == "tensor" and place.capability < 8:
        pytest.skip("TF32 needs compute capability 8.0")
    m, k, n = 132, 20, 128
    a, b = normal(m, k), normal(k, n)
    if wide == "tensor":
        kernel, expected = matmul.tensor(form, vector), rounded(a) @ rounded(b)
    else:
        kernel, expected = matmul.sgemm(form, vector, wide), a @ b
    a, b = a.T.copy() if form[0] == "T" else a, b.T.copy() if form[1] == "T" else b
    c = place.there(np.full(m * n, np.nan, np.float32))
    which = matmul.Products(m, n, k, 1, 1, 32, 1)
    build.launch(kernel, 2, place.there(a.reshape(-1)), place.there(b.reshape(-1)), c, which)
    assert difference(place.back(c).reshape(m, n), expected, 1e-5) is None


def rounded(x):
    """To 10 bits of mantissa, to nearest, ties away from 0."""
    return ((x.view(np.uint32).astype(np.uint64) + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)


def test_arrays_of_two_places_are_refused(emulated):
    with pytest.raises(TypeError, match="matmul: expected arrays on one device, got numpy.ndarray and tests.DeviceArray"):
        matmul.matmul(normal(2, 2), emulated.there(normal(2, 2)))


def test_an_index_out_of_range_is_nan(place):
    y = place.back(rows.embedding(place.there(normal(3, 2)), place.there(np.array([0, 3, -4]))))
    assert np.isfinite(y[0]).all() and np.isnan(y[1:]).all()
    loss, _ = rows.cross_entropy(place.there(normal(2, 3)), place.there(np.array([3, 1])))
    assert np.isnan(place.back(loss)).tolist() == [True, False]


def test_attention_needs_no_matrix(emulated, monkeypatch):
    """What the doors allocate for 40 times the length is 40 times as much, not 1600 times."""
    sizes = []

    def counted(like, shape):
        made = np.empty_like(like, shape=shape, dtype=np.float32, order="C")
        sizes.append(made.size)
        return made

    monkeypatch.setattr(attention, "empty", counted)
    monkeypatch.setattr(build, "run", lambda *_: None)
    totals = []
    for t in (50, 2000):
        sizes.clear()
        q = emulated.there(np.zeros((1, t, 32), np.float32))
        out, statistics = attention.attention(q, q, q, causal=True)
        attention.attention_backward(q, q, q, q, out, statistics, causal=True)
        totals.append(sum(sizes))
    assert totals[1] <= 40 * totals[0]


# ---------------------------------------------------------------------------------------------------------------------
# The tests are tested
# ---------------------------------------------------------------------------------------------------------------------

GUARD = "if j >= S or i >= T or (options.causal and j > i):\n                        s[m, n]"
FAULTS = {  # module, door, the line as it is, and as it must not be
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
    name, door, line, instead = FAULTS[fault]
    source = (Path(build.__file__).parent / f"{name}.py").read_text()
    assert line in source, "the line to change is no longer there"
    path = tmp_path / f"faulty_{name}.py"
    path.write_text(source.replace(line, instead, 1))
    monkeypatch.setattr(build, "KERNELS", {})
    spec = importlib.util.spec_from_file_location(path.stem, path)
    faulty = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faulty)
    if name in MODULES:
        monkeypatch.setattr(faulty, "empty", MODULES[name].empty)
    else:  # kernels of attention_forward.py and attention_backward.py, which attention.py launches
        monkeypatch.setattr(attention, name.removeprefix("attention_"), faulty)
        faulty = attention
    with np.errstate(all="ignore"):
        for arguments, options in CASES[door]():
            try:
                if wrong(emulated, faulty, door, arguments, options):
                    return
            except (IndexError, AssertionError, emulator.BarrierError):
                return
    pytest.fail("no case was wrong")


# ---------------------------------------------------------------------------------------------------------------------
# A second opinion
# ---------------------------------------------------------------------------------------------------------------------

SIMULATED = """
import numpy as np
from kernels import backends, reference
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


# ---------------------------------------------------------------------------------------------------------------------
# Models on the kernels
# ---------------------------------------------------------------------------------------------------------------------


def models():
    images = (np.random.default_rng(1).random((3, 1, 8, 8)) < 0.3).astype(np.float32), None
    ids = np.random.default_rng(1).integers(0, 11, (2, 6))
    return {
        "gpt": (lambda: GPT(GPTConfig(11, 5, 1, 2, 16, bias=True)), (ids[:, :-1], ids[:, 1:])),
        "vae": (lambda: VAE(VAEConfig(hidden=16, latent=3)), images),
        "dcgan": (lambda: GAN(GANConfig(network="dcgan", hidden=4, latent=4)), images),
    }


@pytest.fixture
def engine(place, monkeypatch, doors_close_again):
    """The device "cuda": a GPU, or the stand-in with the emulator."""
    if place.capability == EMULATED:
        monkeypatch.setattr(device, "library", lambda: library)
        library = standin.Library()
    device._kept.cache_clear()
    return place


@pytest.mark.parametrize("name", ["gpt", "vae", pytest.param("dcgan", marks=pytest.mark.deep)])
def test_a_training_step_on_the_kernels_is_that_on_the_host(engine, name):
    make, batch = models()[name]
    results = []
    for where in ("cpu", "cuda"):
        sg.manual_seed(3)
        model = make().to(where)
        losses = model.training_step(batch, model.optimizers())
        results.append((losses, model.cpu().state_dict()))
    (here, state), (there, found) = results
    assert there == pytest.approx(here, rel=1e-4, abs=1e-5)
    for key, value in state.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-4, err_msg=key)


def test_what_a_gpt_writes_on_the_kernels_is_that_on_the_host(engine, monkeypatch):
    """Its prompt at once, then a query at a time beside the cached keys."""
    sg.manual_seed(3)
    model, prompt = GPT(GPTConfig(11, 5, 1, 2, 16)).eval(), np.array([[1, 2, 3]])
    expected = model.generate(prompt, 2, generator=np.random.default_rng(0))
    run, seen = build.run, []
    monkeypatch.setattr(build, "run", lambda kernel, *how: (seen.append(kernel.name), run(kernel, *how)))
    found = model.to("cuda").generate(prompt, 2, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(found, expected)
    assert [name for name in seen if "attention" in name or "query" in name] == ["attention_32", "one_query_32"]


@pytest.mark.gpu
def test_gradients_on_a_gpu_are_right(doors_close_again):
    """Operations in float64 against differences, on the device; and whole losses over a run, against the host's."""
    if device.obstacle():
        pytest.skip(device.obstacle())
    for f in (F.gelu, lambda x: F.softmax(x, -1), lambda x: F.layer_norm(x, 4), lambda x: x @ x.mT, lambda x: x.logsumexp(0)):
        sg.gradcheck(lambda x, f=f: f(x.to("cuda")).cpu(), [normal(3, 4).astype(np.float64)])
    for make, batch in models().values():
        runs = []
        for where in ("cpu", "cuda"):
            sg.manual_seed(3)
            model = make().to(where)
            optimizers = model.optimizers()
            runs.append([list(model.training_step(batch, optimizers).values()) for _ in range(20)])
        np.testing.assert_allclose(runs[1], runs[0], rtol=2e-2, atol=1e-3)
