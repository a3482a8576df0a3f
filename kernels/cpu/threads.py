"""How many threads kernels use: SCRATCHGEN_THREADS, or one for each core. `pool.py` is what shares the work among them.

Work is cut into as many equal parts as there are threads, in an order that does not depend on the clock: the same bits
at the same number of threads. A threaded BLAS beside the pool makes both ten times slower, since the idle threads of
each keep spinning on the cores of the other: the kernels call none.
"""

from __future__ import annotations

from importlib import import_module

import numba

from kernels import settings


def _wanted() -> int:
    most = numba.config.NUMBA_NUM_THREADS
    return min(settings.threads() or most, most)


_count = _wanted()


def threads() -> int:
    """How many parts kernels cut their work into: the number of threads, also where one thread has to do all of them."""
    return _count


def set_threads(n: int) -> None:
    """Use n threads from now on, at most as many as the pool has."""
    global _count
    if not 1 <= n <= numba.config.NUMBA_NUM_THREADS:
        raise ValueError(f"set_threads: expected 1 to {numba.config.NUMBA_NUM_THREADS}, got {n}")
    _count = n
    import_module("kernels.cpu.pool").pool().set_threads(n)  # imported here, since the pool imports this module
