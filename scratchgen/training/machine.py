"""What computes a run: the part of "the same bits" that is no setting of its recipe.

The bits of a run are decided by

    the recipe                its settings, `seed` among them
    the data                  known by their checksums
    the device                cpu or cuda
    the kernels               reference or cpu, and of the latter how many threads share the work, and how wide its vectors are
    the machine               the processor and the versions of Python's libraries, which are not recorded

From the one seed come the split of data that have none of their own, the first weights, the order of the batches, the noise of
each step and the samples on the way; a batch depends on the seed and its step alone, and all other noise on the library's
generator, whose state a checkpoint holds.
"""

from __future__ import annotations

from typing import Any

import kernels


def now(device: str) -> dict[str, Any]:
    """What computes here and now, for a model on this device."""
    backend = kernels.chosen()["kernels"]
    found: dict[str, Any] = {"device": device, "kernels": backend}
    if backend == "cpu":
        from kernels.cpu import simd, threads

        found |= {"threads": threads.threads(), "vector bits": simd.BITS}
    return found
