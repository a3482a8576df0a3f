"""Every kernel of `kernels.cpu` against the reference, on arrays between two pages that may not be touched.

Run as a program, with SCRATCHGEN_SIMD for the width of the vectors: `python tests/kernel_cases.py f matmul attention`.
Prints a line for each kernel: its name and what was wrong. An element read or written out of bounds ends the program.
"""

import ctypes
import inspect
import itertools
import mmap
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kernels
from kernels import reference

PAGE = mmap.PAGESIZE
# Each kernel of kernels/__init__.py, and its subject: the name of the module that computes it in a backend.
KERNELS = {name: f for name, f in vars(kernels).items() if inspect.isfunction(f) and f.__module__ == "kernels"}
SUBJECT = {name: re.search(r"backend_of\(.*?\)\.(\w+)", inspect.getsource(f))[1] for name, f in KERNELS.items()}
TOLERANCE = {"f": 3e-4, "d": 1e-10}
libc = ctypes.CDLL(None, use_errno=True)
at_end = True  # does an array end where the forbidden page begins, or begin where it ends?


def guarded(shape, dtype, strides=None, low=0, extent=None):
    """An array against a page that may not be touched; `low`: bytes of its extent that lie before its first element."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    extent = int(np.prod(shape)) * dtype.itemsize if extent is None else extent
    pages = -(-max(extent, 1) // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        if libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = (pages + 1) * PAGE - extent if at_end else PAGE
    return np.ndarray(shape, dtype, memory, offset + low, strides)


def guarded_copy(x):
    """A copy of x with its strides, in guarded memory."""
    if not isinstance(x, np.ndarray) or x.size == 0:
        return x
    first, last = np.lib.array_utils.byte_bounds(x)
    low = x.__array_interface__["data"][0] - first
    y = guarded(x.shape, x.dtype, x.strides, low, last - first)
    if 0 in x.strides:
        y[tuple(slice(0, 1) if s == 0 else slice(None) for s in x.strides)] = x[
            tuple(slice(0, 1) if s == 0 else slice(None) for s in x.strides)
        ]
    else:
        y[...] = x
    return y


class GuardedNumPy:
    """NumPy, but what it allocates lies in guarded memory, so that results are watched too."""

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float):
        return guarded(shape, dtype)

    def zeros(self, shape, dtype=float):
        return guarded(shape, dtype)  # fresh pages are zeros

    def empty_like(self, x):
        like = np.empty_like(x)
        return guarded(like.shape, like.dtype, like.strides, 0, like.nbytes)


def layouts(x):
    """The same matrices, contiguous and not."""
    yield x
    yield np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    yield np.repeat(np.repeat(x, 2, -1), 2, -2)[..., ::2, ::2]
    yield np.ascontiguousarray(np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 3)]))[..., :-3]
    yield np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1]


def matmul_cases(letter, normal):
    sizes = [(1, 1, 1), (1, 5, 3), (3, 0, 4), (0, 3, 4), (4, 3, 0), (17, 33, 65), (64, 64, 64), (131, 300, 260), (5, 700, 300)]
    for m, k, n in sizes:
        for a, b in itertools.product(layouts(normal(m, k)), layouts(normal(k, n))):
            yield "matmul", (a, b), {}
    for a, b in (((4,), (4,)), ((1,), (3,)), ((), (5,)), ((2, 3), (3,)), ((2, 1, 3), (4, 1)), ((0,), (1,))):
        for m, k, n in ((5, 7, 9), (70, 64, 65)):
            yield "matmul", (normal(*a, m, k), normal(*b, k, n).swapaxes(-1, -2).copy().swapaxes(-1, -2)), {}
    yield "matmul", (np.broadcast_to(normal(1, 40), (30, 40)), np.broadcast_to(normal(40, 1), (40, 70))), {}
    for out in layouts(normal(61, 71)):
        for activation, bias in itertools.product((None, "relu", "gelu", "gelu_tanh"), (None, normal(71), normal(61, 1))):
            yield "matmul", (normal(61, 37), normal(37, 71)), {"out": out, "bias": bias, "activation": activation}
        yield "matmul", (normal(61, 37), normal(37, 71)), {"out": out}
    yield "matmul", (normal(300, 64), normal(64, 300)), {"bias": normal(300), "activation": "relu"}
    yield "matmul", (normal(20, 64), normal(64, 700)), {"bias": normal(700), "activation": "gelu"}
    yield "matmul", (normal(100, 64), normal(300, 64).T), {"bias": normal(600)[::2], "activation": "relu"}  # by columns
    yield "matmul", (normal(3, 40, 64), normal(90, 64).T), {"out": normal(3, 90, 40).swapaxes(1, 2)}
    yield "matmul", (normal(3, 40, 64), normal(64, 96)), {"bias": normal(96), "out": normal(3, 40, 192)[..., ::2]}
    yield "matmul", (normal(3, 1200), normal(1200, 19)), {}  # small, but of sums too long for one block
    special = normal(20, 20)
    special[0, 0], special[1, 1], special[2, 2] = np.nan, np.inf, -np.inf
    yield "matmul", (special, normal(20, 20)), {}
    for k, n in ((1, 7), (2, 33), (35, 1), (67, 31), (700, 900), (5000, 9)):  # a row or two: on one thread, on two, too long
        for m in (1, 2):
            for a, b in itertools.product(layouts(normal(m, k)), layouts(normal(k, n))):
                yield "matmul", (a, b), {}
        for b in (normal(k, n), normal(n, k).T):
            yield "matmul", (normal(1, k), b), {"bias": normal(n), "activation": "gelu"}
            yield "matmul", (normal(1, k), b), {"out": normal(1, n)}
            yield "matmul", (normal(2, 1, k), b), {"out": normal(2, 1, 2 * n)[..., ::2]}
            yield "matmul", (normal(3, 1, k), np.broadcast_to(b, (3, k, n))), {}
    for row in special[:4, None]:
        for b in (special, special.T, normal(20, 20), normal(20, 20).T):
            yield "matmul", (row, b), {}
    sizes = dict(zip("abcdij", (3, 4, 2, 5, 7, 6), strict=True))
    for equation in (
        "ab,bc->ac",
        "abi,abj->ij",
        "ab,cd->dbca",
        "abi,jbi->bja",
        "a,a->",
        "ab,bc,cd->da",
        "ab,ab,ab->a",
        "ab->ba",
    ):
        yield "einsum", (equation, *(normal(*map(sizes.get, x)) for x in equation.split("->")[0].split(","))), {}


def attention_cases(letter, normal):
    def passes(q, k, v, options):
        out, statistics = reference.attention(q, k, v, **options)
        yield "attention", (q, k, v), options
        yield "attention_backward", (normal(*out.shape), q, k, v, out, statistics), options

    def heads(*shape):  # as a model has them: the dimension of the heads inside that of the positions
        return np.moveaxis(normal(*shape[:-3], shape[-2], shape[-3], shape[-1] + 2), -3, -2)[..., :-2]

    shapes = [
        ((), (), 1, 1, 1, 1),
        ((2, 3), (2, 3), 5, 7, 3, 4),
        ((1, 2), (1, 2), 130, 70, 16, 65),
        ((3,), (3,), 1, 300, 64, 64),
        ((2, 2, 3), (2, 2, 1), 33, 40, 8, 8),
        ((2, 3), (1, 3), 20, 30, 5, 7),
        ((2,), (), 150, 600, 33, 20),
        ((2,), (2,), 3, 9, 16, 16),
        ((2,), (2,), 0, 5, 4, 4),
    ]
    for (q_lead, k_lead, t, s, d, e), causal in itertools.product(shapes, (False, True)):
        lead = np.broadcast_shapes(q_lead, k_lead)
        dead = np.where(normal(t, s) < 0, -np.inf, 0).astype(letter)
        dead[:2] = -np.inf  # rows that may attend to nothing
        padding = np.where(normal(*lead[:1], *[1] * len(lead[1:]), 1, s) < -0.5, -np.inf, 0).astype(letter)
        for mask in (None, normal(*lead, t, s), padding, dead):
            make = heads if len(q_lead) == 2 and len(k_lead) == 2 else normal
            q, k, v = make(*q_lead, t, d), make(*k_lead, s, d), make(*k_lead, s, e)
            options = {"causal": causal, "mask": mask}
            yield from passes(q, k, v, options)
    # few heads of many keys: threads share a head; cuts fall amid keys and queries; a scale that is not positive
    for q_lead, k_lead, t, s, d, e in [
        ((1,), (1,), 300, 1100, 16, 16),
        ((3,), (3,), 700, 600, 8, 12),
        ((2, 3), (2, 1), 290, 330, 5, 64),
        ((1, 1), (1, 1), 1200, 300, 16, 32),
    ]:
        for causal, scale, dropout_p in ((False, None, 0.0), (True, None, 0.3), (True, -0.5, 0.0), (False, 0.0, 0.5)):
            options = {"causal": causal, "scale": scale, "dropout_p": dropout_p, "seed": 12345678901, "stream": 7}
            yield from passes(normal(*q_lead, t, d), normal(*k_lead, s, d), normal(*k_lead, s, e), options)
    for t, s, d, e, dropout_p in ((1, 1, 1, 1, 0.5), (3, 70, 16, 8, 0.3), (66, 67, 32, 32, 0.3), (66, 67, 32, 32, 1.0)):
        q, k, v = heads(2, 3, t, d), heads(2, 3, s, d), heads(2, 3, s, e)
        for mask in (None, normal(2, 1, t, s), np.where(normal(2, 1, 1, s) < -0.5, -np.inf, 0).astype(letter)):
            yield from passes(q, k, v, {"mask": mask, "dropout_p": dropout_p, "seed": 3})
    # Q, K, V in one buffer, (B, T, 3, H, D), and their gradients into another
    q, k, v = np.moveaxis(normal(2, 70, 3, 4, 32), (2, 3), (0, 2))
    yield from passes(q, k, v, {"causal": True})
    out, statistics = reference.attention(q, k, v)
    for into in (np.moveaxis(normal(2, 70, 3, 4, 32), (2, 3), (0, 2)), normal(3, 2, 4, 70, 64)[..., ::2]):
        yield "attention_backward", (normal(*q.shape), q, k, v, out, statistics), {"into": list(into)}


def rows_cases(letter, normal):
    for n, width in ((1, 1), (3, 5), (70, 65), (400, 130), (0, 4), (4, 0)):
        x, dy, w, b = 3 * normal(n, width), normal(n, width), normal(width), normal(width)
        inputs = [x]
        if n == 70:
            special = x.copy()
            special[1], special[2, 3], special[0, 1], special[5, 5] = -np.inf, -np.inf, np.nan, np.inf
            inputs += [special, np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2]]
        for y in inputs:
            for kernel in ("softmax", "log_softmax"):
                yield kernel, (y,), {"axis": -1}
                yield kernel, (y,), {"axis": 0}
            if not width:
                continue
            target = np.arange(n) % width
            target[::3] = -100
            yield "cross_entropy", (y, target), {}
            yield "cross_entropy_backward", (normal(n), y, target, reference.cross_entropy(y, target)[1]), {}
            finite = np.nan_to_num(y, posinf=1, neginf=0)
            _, mean, rstd = reference.layer_norm(finite, w, b)
            yield "layer_norm", (finite, w, b), {}
            yield "layer_norm_backward", (dy, finite, w, mean, rstd), {}
            if not n:
                continue
            rstd = reference.rms_norm(finite, w)[1]
            yield "rms_norm", (finite, w), {}
            yield "rms_norm_backward", (dy, finite, w, rstd), {}
            for shape in ((n, width), (n, width, 1), (2, width, n)) if n > 1 else ():
                image, grad = normal(*shape), normal(*shape)
                _, mean, rstd = reference.batch_norm(image, w, b)
                yield "batch_norm", (image, w, b), {}
                yield "batch_norm_backward", (grad, image, w, mean, rstd), {}
    for x in (normal(1, 1), normal(0, 3), normal(3, 0), normal(67, 40), normal(130, 785), np.asfortranarray(normal(200, 90))):
        yield "column_sums", (x,), {}
    index = np.arange(-50, 50).repeat(12).reshape(40, 30)
    for width in (1, 24, 33):
        yield "embedding", (normal(50, width), index), {}
    for shape in ((50, 24), (50,), (50, 3, 11)):
        yield "scatter_add", (normal(*shape), index, normal(40, 30, *shape[1:])), {}


def elementwise_cases(letter, normal):
    for n, width in ((1, 1), (3, 5), (70, 65), (400, 130), (0, 4), (4, 0)):
        x, dy = 3 * normal(n, width), normal(n, width)
        inputs = [x, 40 * x]
        if n == 70:
            special = x.copy()
            special[1], special[2, 3], special[0, 1], special[5, 5] = -np.inf, -np.inf, np.nan, np.inf
            inputs += [special, np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2]]
        for y in inputs:
            for approximate in ("none", "tanh"):
                yield "gelu", (y,), {"approximate": approximate}
                yield "gelu_backward", (dy, y), {"approximate": approximate}
            for p in (0.0, 0.3, 1.0):
                yield "dropout", (y,), {"p": p, "seed": 12345678901, "stream": 7}
    for x in (normal(0), normal(1), 3 * normal(7, 5), normal(2, 1, 3), 40 * normal(100, 300), np.asfortranarray(normal(9, 33))):
        t = abs(normal(*x.shape)) % 1
        yield "binary_cross_entropy", (x, t), {}
        yield "binary_cross_entropy", (x, t), {"total": True}
        for kept in (x.ndim, x.ndim - 1, 0):  # a gradient of its own for each element, for each row, or one for all
            shared = normal(*x.shape[:kept], *[1] * (x.ndim - kept))
            yield "binary_cross_entropy_backward", (np.broadcast_to(shared, x.shape), x, t), {}
        yield "squared_error", (x, t), {}
        yield "squared_error", (x, t, 7), {}
    for n, width in ((1, 1), (3, 5), (1, 40_000), (300, 130), (0, 4), (4, 0)):
        for x in (normal(n, width), np.asfortranarray(normal(n, width))):
            for kernel in ("add_to_rows", "scale_rows"):
                yield kernel, (x, normal(n)), {}
                yield kernel, (x, normal(2 * n)[::2]), {}


def activations_cases(letter, normal):
    special = 3 * normal(70, 65)
    special[1], special[2, 3], special[0, 1], special[5, 5] = -np.inf, -np.inf, np.nan, np.inf
    turned = np.asfortranarray(3 * normal(70, 66))
    for x in (normal(1), normal(), 3 * normal(5, 3), 40 * normal(70, 65), special, turned, turned[:, ::2], normal(400, 130)):
        dy = normal(*x.shape)
        for kernel, options in (
            ("sigmoid", [{}]),
            ("tanh", [{}]),
            ("sign", [{}]),
            ("softplus", [{}, {"beta": 0.5, "threshold": 1.0}, {"beta": -1.0, "threshold": np.inf}]),
            ("elu", [{}, {"alpha": 0.3, "scale": 2.0, "rate": 1.5}, {"rate": -0.01}]),
            ("silu", [{}]),
            ("mish", [{}]),
        ):
            for chosen in options:
                if kernel != "tanh":
                    yield kernel, (x,), chosen
                if kernel == "sign":
                    yield kernel, (np.round(x / 9),), chosen  # with zeros
                    continue
                yield f"{kernel}_backward", (dy, np.tanh(x) if kernel in ("sigmoid", "tanh") else x), chosen
    for shape, axes in (((2,), [0]), ((3, 4), [-1]), ((2, 6, 5), [0, 1]), ((70, 260), [0, 1, -1]), ((1, 400, 66), [1, 2])):
        x = 3 * normal(*shape)
        for axis in axes:
            dy = normal(*reference.glu(x, axis).shape)
            for y in (x, np.asfortranarray(x)):
                yield "glu", (y, axis), {}
                yield "glu_backward", (dy, y, axis), {}
    for shape in ((1,), (3, 5), (4, 1, 65), (300, 130)):
        for axis in range(len(shape)):
            yield "softmax_backward", (normal(*shape), reference.softmax(normal(*shape), axis), axis), {}
            yield "log_softmax_backward", (normal(*shape), reference.log_softmax(normal(*shape), axis), axis), {}


def reductions_cases(letter, normal):
    for x in (normal(40, 3, 70), normal(1, 5000, 3), normal(3, 130, 15), normal(70, 9, 8), normal(6, 6, 6), normal(5, 1, 9000)):
        for y, axes in itertools.product(layouts(x), ((0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2), ())):
            yield "sum_over", (y, axes, 7), {}
        yield "sum_over", (np.broadcast_to(x[:1], (9, *x.shape[1:])), (0, 2)), {}


def groups_cases(letter, normal):
    for shape, groups in (((1, 1), 1), ((3, 4), 2), ((2, 6, 5), 3), ((2, 6, 5), 6), ((3, 8, 17, 40), 2), ((2, 4, 700), 1)):
        image, dy, w, b = normal(*shape), normal(*shape), normal(shape[1]), normal(shape[1])
        for x in (image, np.asfortranarray(image), image + 100):
            yield "group_norm", (x, w, b, groups), {}
            yield "group_norm_backward", (dy, x, w, *reference.group_norm(x, w, b, groups)[1:]), {}


def optimizer_cases(letter, normal):
    options = {"step": 3, "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
    for shapes in (((1,),), ((37,), (1, 1), (0,), (20, 20)), ((201, 100), (3,), (2, 5, 7))):
        lists = [[normal(*shape) for shape in shapes] for _ in range(4)]
        lists[3] = [abs(v) for v in lists[3]]
        for kernel in ("adam", "adamw"):
            yield kernel, lists, options
        yield "sum_of_squares", lists[:1], {}
        yield "scale", (lists[0], 0.3), {}
    yield "sum_of_squares", ([normal(30, 20).T, normal(4, 1)],), {}


def images_cases(letter, normal):
    special = normal(20, 5)
    special[0, 0], special[1, 1], special[2, 2], special[3, 3], special[4, 4] = np.nan, np.inf, -np.inf, 0.0, -0.0
    for x in (normal(), normal(1), normal(0, 3), special, np.asfortranarray(special), normal(3, 60, 200)):
        for slope in (0.0, 0.2, 1.0):
            yield "leaky_relu", (x, slope), {}
            yield "leaky_relu_backward", (normal(*x.shape), x, slope), {}
    for shape, rows, columns in (
        ((2, 3, 4, 5), np.arange(8) // 2, np.arange(10) // 2),
        ((1, 2, 3, 4), np.arange(9) // 3, np.arange(4)),
        ((2, 1, 7, 9), np.array([0, 0, 3, 6]), np.array([1, 4, 4, 4, 8])),
        ((1, 1, 1, 1), np.zeros(1, int), np.zeros(3, int)),
        ((0, 2, 3, 4), np.arange(3), np.arange(8) // 2),
        ((4, 30, 14, 14), np.arange(28) // 2, np.arange(28) // 2),
        ((4, 30, 14, 14), np.arange(17) * 14 // 17, np.arange(28) * 5 // 14),
    ):
        images = normal(*shape)
        for x in (images, np.asfortranarray(images), np.repeat(images, 2, 3)[..., ::2]):
            yield "nearest", (x, rows, columns), {}
            dy = normal(*shape[:2], len(rows), len(columns))
            yield "nearest_backward", (dy, rows, columns, shape[2:]), {}


def pooling_cases(letter, normal):
    for shape, counts, kernel, stride, padding, dilation in (
        ((2, 3, 8, 10), (4, 5), (2, 2), (2, 2), (0, 0), (1, 1)),
        ((1, 2, 9, 37), (9, 37), (3, 3), (1, 1), (1, 1), (1, 1)),
        ((2, 1, 11, 40), (4, 7), (3, 2), (3, 6), (1, 0), (1, 3)),
        ((1, 2, 5, 6), (3, 4), (3, 2), (2, 2), (1, 1), (1, 1)),  # the last windows reach beyond the padding: ceil_mode
        ((3, 2, 20), (10,), (2,), (2,), (0,), (1,)),
        ((0, 2, 4, 4), (2, 2), (2, 2), (2, 2), (0, 0), (1, 1)),
        ((20, 40, 16, 16), (8, 8), (2, 2), (2, 2), (0, 0), (1, 1)),
    ):
        image, how = np.round(2 * normal(*shape)), {"stride": stride, "padding": padding}
        holes = np.where(image > 1, np.nan, np.where(image < 0, -np.inf, image)).astype(letter)
        for x in (image, np.asfortranarray(image), holes):
            yield "max_pool", (x, counts, kernel), {**how, "dilation": dilation}
        _, index = reference.max_pool(image, counts, kernel, **how, dilation=dilation)
        dy, share = normal(*index.shape), 1 / (1 + np.arange(np.prod(counts)).reshape(counts))
        yield "max_pool_backward", (dy, index, shape[2:]), {}
        if max(dilation) == 1:
            yield "avg_pool", (np.asfortranarray(normal(*shape)), share, kernel), how
            yield "avg_pool_backward", (dy, share, shape[2:], kernel), how


CASES = {
    "matmul": matmul_cases,
    "attention": attention_cases,
    "rows": rows_cases,
    "elementwise": elementwise_cases,
    "activations": activations_cases,
    "groups": groups_cases,
    "pooling": pooling_cases,
    "reductions": reductions_cases,
    "optimizer": optimizer_cases,
    "images": images_cases,
}


def each(f, x):
    """f of an array, or of each array of a list."""
    return [each(f, y) for y in x] if isinstance(x, list) else f(x) if isinstance(x, np.ndarray) else x


def difference(ours, theirs, tolerance):
    """What is wrong with a result, or None."""
    if isinstance(theirs, tuple | list):
        return next((d for x, y in zip(ours, theirs, strict=True) if (d := difference(x, y, tolerance))), None)
    if theirs is None:
        return None if ours is None else "expected None"
    if isinstance(theirs, float):
        return None if isinstance(ours, float) and abs(ours - theirs) <= tolerance * abs(theirs) else f"{ours} for {theirs}"
    while theirs.ndim > ours.ndim:  # keys that heads share: the reference leaves their gradients apart
        theirs = theirs.sum(axis=0)
    for axis, n in enumerate(ours.shape):
        if n == 1 and theirs.shape[axis] > 1:
            theirs = theirs.sum(axis=axis, keepdims=True)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"expected {theirs.dtype} {theirs.shape}, got {ours.dtype} {ours.shape}"
    if not np.allclose(
        ours,
        theirs,
        rtol=tolerance,
        atol=tolerance * max(1, 0.3 * np.nanmax(abs(theirs), initial=0, where=np.isfinite(theirs))),
    ):
        if not np.allclose(ours, theirs, rtol=tolerance, atol=10 * tolerance, equal_nan=True):
            return f"off by {np.nanmax(abs(ours - theirs)):.2g} at {theirs.shape}"
    return None


def check(module, kernel, arguments, options, tolerance):
    """One case: with ordinary results, and with guarded ones at either end."""
    global at_end
    expected = [each(np.ndarray.copy, x) for x in arguments]
    wanted_options = {k: v.copy() if k == "out" else v for k, v in options.items()}
    wanted = getattr(reference, kernel)(*expected, **wanted_options)
    for guard in (None, True, False):
        if guard is not None:
            at_end = guard
            module.np = GuardedNumPy()
            module.scratch = lambda letter, n: guarded(n, letter)
        inputs = [each(guarded_copy, x) for x in arguments]
        copies = {k: each(guarded_copy, v) for k, v in options.items()}
        try:
            got = getattr(module, kernel)(*inputs, **copies)
        finally:
            module.np, module.scratch = np, kept_scratch
        if wanted is None:  # in place: the arguments are the results
            got, want = tuple(inputs), tuple(expected)
        else:
            want = wanted
            for before, after in zip(arguments, inputs, strict=True):
                if difference(after, before, 0) if isinstance(before, np.ndarray | list) else False:
                    return "an input was changed"
        if "out" in copies and got is not copies["out"]:
            return "out= was not returned"
        wrong = difference(got, want, tolerance)
        if wrong:
            return wrong
    return None


def main(letter, subjects):
    from importlib import import_module

    global kept_scratch
    from kernels.cpu.memory import scratch as kept_scratch

    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(letter)

    np.seterr(all="ignore")
    for subject in subjects:
        module = import_module(f"kernels.cpu.{subject}")
        failures = {}
        for kernel, arguments, options in CASES[subject](letter, normal):
            wrong = check(module, kernel, arguments, options, TOLERANCE[letter])
            failures.setdefault(kernel, [])
            if wrong:
                shapes = [each(np.shape, x) for x in arguments]
                named = {k: v.shape if isinstance(v, np.ndarray) else v for k, v in options.items()}
                failures[kernel].append(f"{shapes} {named}: {wrong}")
        for kernel, wrong in failures.items():
            print(f"{kernel}\t{len(wrong)}\t{'; '.join(wrong[:3])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
