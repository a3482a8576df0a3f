"""What computes a run: the part of "the same bits" that is no setting of its recipe.

The bits of a run are decided by

    the recipe                its settings, `seed` among them
    the data                  known by their checksums
    the device                cpu or cuda
    the kernels               reference or cpu; of the latter, how many threads share the work and how wide its vectors are;
                              on a GPU, whether products round their factors to TF32
    scratchgen                its version
    the machine               the processor and the versions of Python's libraries

config.json keeps all of these but the last; of the data it keeps the name or path, and the checkpoint the checksums.

All that is random comes from the one seed of the recipe:

    the split                 of data that have none of their own: from the seed
    batch k                   from the seed and k alone, so that a resumed run need not draw those before
    weights, noise            of the first step and all later ones: from the library's generator, which begins with the seed and
                              whose state is in the checkpoint
    samples on the way        from the seed, the same codes each time; the library's generator stays as it was
    eval, sample              from a seed of their own, 0 where none is named
"""

from __future__ import annotations

from typing import Any

import kernels
from kernels import settings


def now(device: str) -> dict[str, Any]:
    """What computes here and now, for a model on this device."""
    backend = kernels.chosen()["kernels"]
    found: dict[str, Any] = {"device": device, "kernels": backend}
    if backend == "cpu":
        from kernels.cpu import simd, threads

        found |= {"threads": threads.threads(), "vector bits": simd.BITS}
    if device != "cpu":
        found["tf32"] = settings.tf32()
    return found
