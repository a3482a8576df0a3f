"""Pooling: the reference's form, on device arrays."""

from kernels.reference_pooling import avg_pool, avg_pool_backward, max_pool, max_pool_backward  # noqa: F401
