"""Convolution on the processor against `reference.py`: geometries, dtypes, threads, vector widths, layouts, memory bounds."""

import ctypes
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kernels import reference

pytest.importorskip("numba")
from kernels.cpu import convolution, convolution_plans, jobs, winograd
from kernels.cpu.simd import BITS

WIDTHS = 128, 256, 512  # all of them run anywhere: LLVM splits vectors that the machine does not have
GEOMETRIES = [
    # images, channels, size, outputs, kernel, stride, padding, dilation, groups
    (4, 1, (28, 28), 64, (4, 4), (2, 2), (1, 1), (1, 1), 1),
    (3, 64, (14, 14), 70, (4, 4), (2, 2), (1, 1), (1, 1), 1),
    (5, 33, (8, 8), 47, (4, 4), (2, 2), (1, 1), (1, 1), 1),
    (2, 64, (9, 7), 64, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (1, 5, (6, 6), 65, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (2, 6, (5, 4), 9, (1, 1), (1, 1), (0, 0), (1, 1), 3),
    (2, 20, (7, 7), 65, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (1, 1, (5, 5), 1, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (3, 3, (17, 13), 5, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    (2, 7, (9, 11), 33, (3, 5), (1, 1), (2, 2), (1, 1), 1),
    (2, 33, (9, 8), 3, (5, 5), (2, 2), (2, 2), (1, 1), 1),
    (2, 66, (7, 5), 17, (7, 7), (1, 1), (3, 3), (1, 1), 1),
    (2, 50, (5, 6), 49, (3, 3), (3, 3), (0, 0), (1, 1), 1),
    (2, 6, (11, 11), 9, (2, 2), (3, 3), (0, 0), (1, 1), 1),  # stride beyond the kernel: pixels that no window meets
    (1, 70, (9, 9), 20, (2, 2), (3, 3), (1, 1), (1, 1), 1),
    (2, 8, (9, 10), 12, (3, 2), (2, 1), (0, 3), (1, 2), 1),
    (2, 9, (12, 11), 10, (3, 3), (2, 3), (4, 5), (2, 3), 1),  # dilation and padding beyond the kernel
    (2, 10, (8, 8), 10, (3, 3), (4, 4), (2, 2), (2, 2), 1),  # remainders that no tap has
    (3, 42, (8, 2), 51, (2, 3), (4, 3), (0, 1), (1, 1), 1),  # taps that reach no pixel
    (2, 6, (9, 9), 4, (3, 3), (1, 1), (1, 1), (2, 2), 2),
    (2, 8, (9, 9), 8, (3, 3), (2, 2), (1, 1), (1, 1), 8),
    (2, 7, (6, 5), 21, (5, 5), (1, 1), (2, 2), (1, 1), 7),
    (3, 60, (9, 9), 24, (3, 3), (2, 2), (2, 2), (1, 1), 3),
    (1, 3, (4, 4), 40, (4, 4), (1, 1), (0, 0), (1, 1), 1),
    (65, 2, (3, 3), 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (1, 4, (40, 41), 6, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 1, (37,), 8, (5,), (1,), (2,), (1,), 1),
    (3, 17, (29,), 33, (3,), (2,), (4,), (3,), 1),
    (2, 12, (16,), 12, (4,), (4,), (0,), (1,), 4),
    (2, 5, (9,), 7, (1,), (1,), (0,), (1,), 1),
    # few outputs: folded from W x, and weights summed with vectors over the inputs
    (2, 16, (9, 10), 1, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (3, 35, (7, 6), 3, (3, 2), (1, 1), (2, 0), (1, 1), 1),
    (2, 20, (8, 9), 2, (3, 3), (1, 1), (1, 3), (2, 2), 1),
    (2, 36, (8, 5), 4, (2, 3), (1, 1), (0, 1), (1, 1), 2),
    (1, 33, (21,), 1, (5,), (1,), (2,), (1,), 1),
    # Winograd
    (2, 16, (8, 7), 24, (3, 3), (1, 1), (0, 0), (1, 1), 1),
    (3, 17, (14, 14), 70, (3, 3), (1, 1), (2, 2), (1, 1), 1),
    (2, 33, (5, 6), 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (1, 20, (3, 3), 20, (3, 3), (1, 1), (0, 0), (1, 1), 1),
    (7, 64, (4, 9), 32, (3, 3), (1, 1), (1, 2), (1, 1), 1),
    (9, 65, (4, 4), 20, (4, 4), (2, 2), (1, 1), (1, 1), 1),
    (3, 17, (9, 13), 70, (4, 4), (2, 2), (0, 3), (1, 1), 1),
    (2, 18, (7, 8), 66, (2, 2), (1, 1), (0, 1), (1, 1), 1),
    (3, 7, (13, 12), 9, (6, 6), (3, 3), (2, 4), (1, 1), 1),
    (2, 5, (13, 17), 9, (6, 6), (2, 2), (5, 1), (1, 1), 1),
]
BY_CHANNEL = [
    (3, 4, (28, 28), 4, (3, 3), (1, 1), (1, 1), (1, 1), 4),
    (2, 3, (40, 37), 6, (7, 5), (2, 3), (3, 0), (1, 2), 3),
    (2, 3, (6, 7), 3, (2, 2), (3, 3), (0, 1), (1, 1), 3),  # pixels that no tap meets
    (2, 3, (9, 9), 3, (3, 3), (1, 1), (4, 4), (1, 1), 3),  # windows that lie in the padding
    (2, 3, (30,), 6, (4,), (1,), (3,), (2,), 3),
    (19, 3, (5, 5), 9, (3, 3), (1, 1), (1, 1), (2, 2), 3),
    (1, 2, (4, 4), 2, (1, 1), (2, 2), (0, 0), (1, 1), 2),
    (1, 5, (7, 70), 5, (4, 9), (2, 2), (2, 4), (2, 1), 5),
    (2, 3, (9, 37), 3, (5, 4), (1, 1), (7, 2), (2, 1), 3),  # long lines, taps whose lines do not follow each other
    (1, 18, (21, 20), 18, (7, 2), (1, 1), (0, 3), (1, 3), 18),
]
WINDOWS = [
    (2, 3, (28, 30), 20, (3, 5), (1, 1), (1, 1), (1, 1), 1),  # lines of one vector and a part
    (2, 3, (9, 75), 33, (5, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 3, (32, 34), 40, (3, 5), (1, 1), (1, 1), (1, 1), 1),  # rows that the cache maps alike
    (2, 6, (9, 11), 40, (3, 3), (1, 1), (2, 2), (1, 2), 2),
    (5, 1, (37,), 48, (5,), (2,), (2,), (1,), 1),
]
FEW = [GEOMETRIES[i] for i in (1, 3, 8, 9, 16, 20, 22, 27, 36, 39)]


@pytest.fixture
def choose(monkeypatch):
    """choose(threads); Winograd's transforms wherever they can be"""
    monkeypatch.setattr(winograd, "CHANNELS", 1.2)
    monkeypatch.setattr(winograd, "TILES", 1)
    return lambda threads: monkeypatch.setattr(convolution, "count_threads", lambda: threads)


def example(geometry, dtype, seed=0):
    """x, w, dy and the keywords of a geometry; the same numbers in both dtypes."""
    images, channels, size, outputs, kernel, stride, padding, dilation, groups = geometry
    rng = np.random.default_rng(seed)
    sizes = zip(size, padding, dilation, kernel, stride, strict=True)
    counts = [(m + 2 * p - d * (k - 1) - 1) // s + 1 for m, p, d, k, s in sizes]
    shapes = (images, channels, *size), (outputs, channels // groups, *kernel), (images, outputs, *counts)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return *(rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in shapes), how


def three(module, x, w, dy, how):
    return (
        module.conv(x, w, **how),
        module.conv_input_grad(dy, w, x.shape[2:], **how),
        module.conv_weight_grad(x, dy, w.shape[2:], **how),
    )


@cache
def expected(geometry):
    """The three results, and those of all magnitudes."""
    x, w, dy, how = example(geometry, np.float64)
    return three(reference, x, w, dy, how), three(reference, *map(np.abs, (x, w, dy)), how)


def check(geometry, dtype):
    """Within 8 roundings of the sum of all magnitudes: far less than any one term."""
    x, w, dy, how = example(geometry, dtype)
    got, (exact, sizes) = three(convolution, x, w, dy, how), expected(geometry)
    for name, a, b, size in zip(("conv", "conv_input_grad", "conv_weight_grad"), got, exact, sizes, strict=True):
        assert a.shape == b.shape and a.dtype == dtype and a.flags.c_contiguous
        assert np.abs(a - b).max() <= 8 * np.finfo(dtype).eps * size.max(), (name, geometry)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_geometries(choose, dtype, threads):
    choose(threads)
    for geometry in GEOMETRIES + BY_CHANNEL + WINDOWS:
        check(geometry, dtype)


@pytest.mark.parametrize("seed", range(4))
def test_random_geometries(choose, seed):
    rng = np.random.default_rng(seed)
    for _ in range(12):
        dims, groups = int(rng.integers(1, 3)), int(rng.choice([1, 1, 2, 3]))
        limits = (1, 5), (1, 5), (0, 4), (1, 4), (0, 9)
        kernel, stride, padding, dilation, more = (tuple(rng.integers(*pair, dims).tolist()) for pair in limits)
        parts = zip(kernel, padding, dilation, more, strict=True)
        size = tuple(max(1, d * (k - 1) + 1 - 2 * p) + m for k, p, d, m in parts)
        channels, outputs = (groups * int(v) for v in rng.integers(1, 24, 2))
        choose(int(rng.integers(1, 4)))
        check((int(rng.integers(1, 5)), channels, size, outputs, kernel, stride, padding, dilation, groups), np.float32)


def test_winograd_is_taken_and_agrees_with_the_direct_sum(monkeypatch, choose):
    choose(2)
    for geometry in GEOMETRIES[-10:]:
        x, w, dy, how = example(geometry, np.float64)
        with monkeypatch.context() as patch:
            patch.setattr(convolution, "_correlation", None)  # not called
            fast = three(convolution, x, w, dy, how)
        with monkeypatch.context() as patch:
            patch.setattr(winograd, "pays", lambda *_: False)
            direct = three(convolution, x, w, dy, how)
        for a, b in zip(fast, direct, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())
            assert not np.array_equal(a, b)


@pytest.mark.parametrize("side", [3, 4])
def test_the_tiles_that_need_a_position_are_those_whose_outputs_are_not_all_beyond(side):
    """In a batch of any bounds, and never beyond these: what it does not need is zeroed from the bounds on."""
    needing, rng = winograd.needing.py_func, np.random.default_rng(0)
    for images, rows, width in ((1, 1, 1), (2, 1, 9), (3, 5, 4), (2, 4, 5), (1, 3, 7), (2, 2, 2)):
        high, wide = rows // 2, width // 2
        parts = (rows % 2 * wide, True, False), (high * wide, False, False), (high * (width % 2), False, True), (1, True, True)
        kinds = [kind for count, *kind in parts for _ in range(images * count)][: images * -(-rows // 2) * -(-width // 2)]
        for k in range(side * side):
            last_row, last_column = k // side == side - 1, k % side == side - 1
            needs = [not (last_row and below or last_column and beside) for below, beside in kinds]
            for _ in range(20):
                first, last = sorted(rng.integers(0, len(kinds) + 1, 2).tolist())
                p0, p1 = needing(k, side, images, rows, width, first, last)
                assert first <= p0 <= p1 <= last and sum(needs[first:last]) == p1 - p0 == sum(needs[p0:p1])


@pytest.mark.parametrize("geometry", [(2, 96, (1, 4000), 96, 3, 1), (2, 192, (6, 2500), 48, 4, 2)])
def test_winograd_of_wide_low_images_keeps_to_each_threads_workspace(monkeypatch, choose, geometry):
    """More tiles whose second row lies beyond y than a batch has."""
    images, channels, size, outputs, kernel, stride = geometry
    x, w, dy, how = example((images, channels, size, outputs, *[(n,) * 2 for n in (kernel, stride, 1, 1)], 1), np.float32)
    choose(2)
    workspace, after = jobs.workspace, []

    def guarded(*sizes):
        blocks = workspace(*sizes, 1 << 20)
        after.append(np.frombuffer((ctypes.c_uint8 * (1 << 20)).from_address(blocks[-1].address), np.uint8))
        after[-1][:] = 0xA5
        return blocks[:-1]

    monkeypatch.setattr(jobs, "workspace", guarded)
    got = convolution.conv_input_grad(dy, w, size, **how)
    expected = reference.conv_input_grad(dy, w, size, **how)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert len(after) == 1 and (after[0] == 0xA5).all()


def test_where_winograd_pays():
    def pays(channels, size, kernel=3, stride=1, images=64):
        two = lambda m: (m, m)  # noqa: E731
        g = convolution_plans.Geometry(
            channels, two(size * stride), channels, two(size), two(kernel), two(stride), two(1), two(1)
        )
        return winograd.pays(g, 1, images)

    assert pays(64, 14) and pays(32, 28) and pays(64, 7)
    assert pays(64, 14, images=1) and not pays(64, 7, images=2)
    assert pays(64, 7, kernel=4, stride=2) and pays(32, 4, kernel=4, stride=2)
    assert not (pays(8, 28) or pays(32, 7) or pays(64, 14, kernel=4) or pays(64, 14, stride=2))
    assert not (pays(16, 4, kernel=4, stride=2) or pays(32, 7, kernel=4, stride=2))


@pytest.mark.parametrize("geometry", [FEW[0], FEW[3], FEW[-1]])
def test_same_bits_again_and_at_another_address(choose, geometry):
    x, w, dy, how = example(geometry, np.float32)
    for threads in (1, 2, 3):
        choose(threads)
        first = three(convolution, x, w, dy, how)
        again = three(convolution, *(np.concatenate([a.ravel()[:1], a.ravel()])[1:].reshape(a.shape) for a in (x, w, dy)), how)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_layouts_and_inputs_untouched(choose):
    choose(2)
    for geometry in (GEOMETRIES[1], GEOMETRIES[3], GEOMETRIES[8], GEOMETRIES[31], GEOMETRIES[36]):
        x, w, dy, how = example(geometry, np.float32)
        plain = three(convolution, x, w, dy, how)
        backwards = tuple(np.ascontiguousarray(a[..., ::-1])[..., ::-1] for a in (x, w, dy))
        turned = tuple(np.ascontiguousarray(a.T).T for a in (x, w, dy))
        spread = tuple(np.repeat(a, 2, axis=1)[:, ::2] for a in (x, w, dy))
        frozen = tuple(a.copy() for a in (x, w, dy))
        for a in frozen:
            a.flags.writeable = False
        for layout in (backwards, turned, spread, frozen):
            before = [a.copy() for a in layout]
            for a, b in zip(three(convolution, *layout, how), plain, strict=True):
                assert np.array_equal(a, b)
            assert all(np.array_equal(a, b) for a, b in zip(layout, before, strict=True))
    x, w, dy, how = example(GEOMETRIES[9], np.float32)
    ones = np.broadcast_to(np.float32(1), dy.shape)
    got, expected = (m.conv_weight_grad(x, ones, w.shape[2:], **how) for m in (convolution, reference))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_nothing_in_nothing_out():
    for shape in ((0, 3, 8, 8), (2, 0, 8, 8)):
        x, w = np.zeros(shape, np.float32), np.zeros((4, shape[1], 3, 3), np.float32)
        how = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
        dy = np.zeros((shape[0], 4, 8, 8), np.float32)
        for a, b in zip(three(convolution, x, w, dy, how), three(reference, x, w, dy, how), strict=True):
            assert a.shape == b.shape and not a.any()


def test_what_is_not_known_goes_to_the_reference():
    x, w, dy, how = example((2, 3, (4, 5, 4), 4, (2, 2, 2), (1, 1, 1), (1, 0, 1), (1, 1, 1), 1), np.float32)
    for a, b in zip(three(convolution, x, w, dy, how), three(reference, x, w, dy, how), strict=True):
        assert np.array_equal(a, b)
    x, w, dy, how = example(GEOMETRIES[8], np.float32)
    assert convolution.conv(x.astype(np.float64), w, **how).dtype == np.float64


def test_infinities_and_nan_stay_where_they_are(choose):
    choose(1)
    for geometry in (GEOMETRIES[10], GEOMETRIES[3], GEOMETRIES[9], GEOMETRIES[0], *BY_CHANNEL[:4], *WINDOWS[:4]):
        x, w, dy, how = example(geometry, np.float64)
        x[0, 0, 2, 3], x[-1, 0, 1, 1], dy[0, 1, 1, 1], dy[-1, 0, 0, 0] = np.inf, np.nan, -np.inf, np.nan
        with np.errstate(invalid="ignore"):
            expected = three(reference, x, w, dy, how)
        for a, b in zip(three(convolution, x, w, dy, how), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b[np.isfinite(b)]).max())


def test_calls_at_the_same_time(choose):
    choose(1)
    cases = [(example(geometry, np.float32, seed), geometry) for seed, geometry in enumerate(FEW)]
    alone = [three(convolution, *case) for case, _ in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, expected in zip(pool.map(lambda c: three(convolution, *c[0]), cases), alone, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


GUARDED = """
    import ctypes, mmap, sys
    import numpy as np
    sys.path[:0] = [{root!r}, {tests!r}]
    from kernels.cpu import convolution, jobs, memory, winograd
    import test_kernels_conv as t

    libc, page, kept = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE, []

    def guarded(count, dtype, at_end):
        # memory that starts right after, or ends right before, a page that may not be touched; full of NaN
        size = count * np.dtype(dtype).itemsize
        body = -(-size // page) * page
        memory = mmap.mmap(-1, body + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for edge in (start, start + page + body):
            assert libc.mprotect(ctypes.c_void_p(edge), ctypes.c_size_t(page), 0) == 0
        kept.append(memory)
        first = page + (body - size if at_end else 0)
        a = np.frombuffer(memory, np.uint8, size, first)
        a[...] = 255
        return a.view(dtype)

    def guarded_copy(a, at_end):
        b = guarded(a.size, a.dtype, at_end).reshape(a.shape)
        b[...] = a
        return b

    if {bite}:  # the guard itself: one element too far
        a = guarded(10, np.float32, True)
        ctypes.cast(a.ctypes.data, ctypes.POINTER(ctypes.c_float))[10]
        sys.exit(0)

    def workspace(*sizes):
        pieces = [guarded(-(-size // 64) * 64, np.uint8, at_end) for size in sizes]
        return [memory.Held(piece.ctypes.data, piece) for piece in pieces]

    jobs.workspace = workspace
    winograd.CHANNELS, winograd.TILES = 1.2, 1
    for at_end in (True, False):
        convolution._result = lambda shape, dtype: guarded(int(np.prod(shape)), dtype, at_end).reshape(shape)
        for i, geometry in enumerate(t.GEOMETRIES + t.BY_CHANNEL + t.WINDOWS):
            convolution.count_threads = lambda: 1 + i % 2
            for dtype in (np.float32, np.float64):
                x, w, dy, how = t.example(geometry, dtype)
                got = t.three(convolution, *(guarded_copy(a, at_end) for a in (x, w, dy)), how)
                for a, b in zip(got, t.expected(geometry)[0]):
                    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())
                kept.clear()
    print("all within bounds")
"""


def guarded_run(bits, bite=False):
    here = Path(__file__).resolve().parent
    script = GUARDED.format(root=str(here.parent), tests=str(here), bite=bite)
    environment = {**os.environ, "SCRATCHGEN_SIMD": str(bits), "PYTHONMALLOC": "debug", "MALLOC_PERTURB_": "165"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=600, env=environment
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect by its Linux name")
@pytest.mark.parametrize("bits", [BITS, *[pytest.param(bits, marks=pytest.mark.deep) for bits in WIDTHS if bits != BITS]])
def test_no_element_outside_of_the_arrays_is_touched(bits):
    """Inputs, outputs and scratch between pages that may not be touched; what is not written yet reads as NaN.

    What is freed is overwritten."""
    assert guarded_run(bits, bite=True).returncode < 0
    run = guarded_run(bits)
    assert run.returncode == 0 and "all within bounds" in run.stdout, run.stderr[-2000:]
