r"""What attention's kernels share: named tuples, the mask of a score, and three steps on tiles in shared memory.

A tile is a few rows of Q, K, V or Ō in shared memory. A row of D numbers is D + 4 numbers long there, so that rows which
neighbouring threads read at the same d begin in different banks, and four neighbouring d can be read as 16 bytes.

    load     rows of an array in global memory → a tile          all threads of the block, element by element
    dots     s_mn = Σ_d a_md b_nd                                a thread has some rows m of one tile, some rows n of another
    column   which columns of a row a thread holds               four neighbours, then a gap: each thread reads 16 bytes
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import boolean, cuda, float32, uint32

from kernels.cuda.build import INT, device, record


class Options(NamedTuple):
    """What is the same for all scores."""

    scale: float  # τ
    causal: bool  # may query i attend to the keys j ≤ i alone?
    own_masks: bool  # do products z have matrices of M of their own, or is there one for all?
    sharing: int  # neighbouring products that share a matrix of M: product z has the matrix (z / sharing) mod their count


OPTIONS = record(Options, causal=boolean, own_masks=boolean, sharing=INT)


class Tile(NamedTuple):
    """Which scores a thread computes: of product z, queries from i0, keys from j0, of this many queries and keys in all."""

    z: int
    i0: int
    j0: int
    queries: int
    keys: int


@device
def mask_of(M, z, i, j, options):
    """M_ij of product z. A mask of one row or one column is the same for all queries or keys."""
    zm = z // uint32(options.sharing) % uint32(M.shape[0]) if options.own_masks else uint32(0)
    im = i if M.shape[1] > 1 else uint32(0)
    jm = j if M.shape[2] > 1 else uint32(0)
    return M[zm, im, jm]


def loader(width: int, height: int, threads: int) -> Any:
    """A device function: `height` rows of X[z] from `row0` on into a tile, times `scale`; zeros past the last of the `rows`."""

    @device
    def load(tile, X, z, row0, rows, scale):
        e = uint32(cuda.threadIdx.x)
        while e < uint32(height * width):
            r = e // uint32(width)
            d = e % uint32(width)
            tile[r, d] = X[z, row0 + r, d] * scale if row0 + r < rows else float32(0.0)
            e += uint32(threads)

    return load


def dot_products(width: int, height_a: int, height_b: int, gap_a: int, gap_b: int) -> Any:
    """A device function: s[m, n] = Σ_d a[ty + m gap_a, d] b[tx + n gap_b, d], four d at a time, by way of registers ra, rb."""

    @device
    def dots(a, b, ty, tx, ra, rb, s):
        for m in range(height_a):
            for n in range(height_b):
                s[m, n] = float32(0.0)
        d = uint32(0)
        while d < uint32(width):
            for e in range(4):
                for m in range(height_a):
                    ra[m, e] = a[ty + uint32(m * gap_a), d + uint32(e)]
                for n in range(height_b):
                    rb[n, e] = b[tx + uint32(n * gap_b), d + uint32(e)]
            for e in range(4):
                for m in range(height_a):
                    for n in range(height_b):
                        s[m, n] += ra[m, e] * rb[n, e]
            d += uint32(4)

    return dots


def columns(threads_x: int) -> Any:
    """A device function: the column of a row that is number c of thread tx among the `threads_x` threads of the row."""

    @device
    def column(tx, c):
        return tx * uint32(4) + uint32(c // 4 * 4 * threads_x + c % 4)

    return column
