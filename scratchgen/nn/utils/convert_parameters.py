"""The parameters of a module as one vector, and back."""

from __future__ import annotations

from collections.abc import Iterable

from scratchgen.grad_mode import no_grad
from scratchgen.ops import cat
from scratchgen.tensors import Tensor


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of the parameters, one after the other: (n,), differentiable. Raises ValueError for no parameters."""
    return cat([p.reshape(-1) for p in _listed("parameters_to_vector", parameters)])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Overwrite the parameters with the elements of `vec`, (n,), in the order of `parameters_to_vector`.

    Raises ValueError unless `vec` has one element for each of the parameters'; then nothing is written.
    """
    if not isinstance(vec, Tensor):
        raise TypeError(f"vector_to_parameters: expected a tensor, got {type(vec).__name__}")
    listed = _listed("vector_to_parameters", parameters)
    count = sum(p.numel() for p in listed)
    if vec.shape != (count,):
        raise ValueError(f"vector_to_parameters: expected a vector of {count} elements, got shape {vec.shape}")
    begin = 0
    with no_grad():
        for p in listed:
            p.copy_(vec.data[begin : begin + p.numel()].reshape(p.shape))
            begin += p.numel()


def _listed(name: str, parameters: Iterable[Tensor]) -> list[Tensor]:
    listed = list(parameters)
    for p in listed:
        if not isinstance(p, Tensor):
            raise TypeError(f"{name}: expected tensors, got {type(p).__name__}")
    return listed
