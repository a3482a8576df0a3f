r"""Parametrizations: a parameter w of a module that is computed, w = f_k(… f_1(θ)), whenever somebody asks for it.

What is learned is θ, `module.parametrizations.<name>.original`, or several tensors, `original0`, `original1`, …; the
functions f_i are modules, `module.parametrizations.<name>[i]`. Names and keys are PyTorch's. The module itself is not
changed: an attribute that is not there is looked for among its parametrizations (`Module.__getattr__`).
"""

from __future__ import annotations

from typing import Any

from scratchgen.grad_mode import no_grad
from scratchgen.nn.module import Module, ModuleDict, ModuleList, Parameter
from scratchgen.tensors import Tensor


class ParametrizationList(ModuleList):
    """The functions that one tensor of a module is computed by, and what it is computed from."""

    def __init__(self, parametrization: Module, tensor: Tensor):
        super().__init__([parametrization])
        with no_grad():
            found = parametrization.right_inverse(tensor) if hasattr(parametrization, "right_inverse") else tensor
        self.is_tensor = isinstance(found, Tensor)
        if self.is_tensor:  # θ is the very tensor that optimisers may hold
            if found is not tensor:
                tensor.data = found
            self._hold("original", tensor)
            return
        for i, value in enumerate(found):
            self._hold(f"original{i}", Parameter(value, tensor.requires_grad) if isinstance(tensor, Parameter) else value)

    def _hold(self, name: str, tensor: Tensor) -> None:
        (self.register_parameter if isinstance(tensor, Parameter) else self.register_buffer)(name, tensor)

    def originals(self) -> list[Tensor]:
        """θ, or its several tensors."""
        return [value for name, value in self.__dict__.items() if name.startswith("original")]

    def forward(self) -> Tensor:
        first, *others = self
        w = first(*self.originals())
        for f in others:
            w = f(w)
        return w

    def assign(self, value: Tensor) -> None:
        """Make θ such that w is `value`. Raises ValueError where one of the functions has no `right_inverse`."""
        with no_grad():
            found: Any = value
            for f in reversed(list(self)):
                if not hasattr(f, "right_inverse"):
                    raise ValueError(f"{type(f).__name__} has no right_inverse: what it computes cannot be assigned to")
                found = f.right_inverse(found)
            for own, new in zip(self.originals(), [found] if self.is_tensor else found, strict=True):
                own.copy_(new)

    def _older_names(self, path: str) -> dict[str, str]:
        owner, _, name = path.rpartition("parametrizations.")
        return {f"{owner}{name}{old}": f"{path}.{new}" for f in self for old, new in getattr(f, "older", {}).items()}


def register_parametrization(module: Module, tensor_name: str, parametrization: Module) -> Module:
    """Compute `module.<tensor_name>` by `parametrization` from now on, after those that it has already; returns the module.

    If `parametrization` has a method `right_inverse`, θ starts as what it gives for the tensor, one or several; else as the
    tensor itself. Assigning to `module.<tensor_name>` goes by `right_inverse` too.
    Raises ValueError, and changes nothing, where there is no such parameter or buffer, or its shape or dtype would change.
    """
    if not isinstance(parametrization, Module):
        raise TypeError(f"register_parametrization: expected a Module, got {type(parametrization).__name__}")
    parametrization.train(module.training)
    if is_parametrized(module, tensor_name):
        _check(parametrization(getattr(module, tensor_name)), getattr(module, tensor_name), parametrization)
        module.parametrizations[tensor_name].append(parametrization)
        return module
    tensor = module.__dict__.get(tensor_name)
    persistent = module._buffer_names().get(tensor_name)
    if not isinstance(tensor, Parameter) and (persistent is None or tensor is None):
        owner = type(module).__name__
        raise ValueError(f"register_parametrization: expected a parameter or buffer of {owner}, got {tensor_name!r}")
    before = tensor.data.copy()
    functions = ParametrizationList(parametrization, tensor)
    try:
        _check(functions(), before, parametrization)
    except ValueError:
        tensor.data = before
        raise
    del module.__dict__[tensor_name]
    module._buffer_names().pop(tensor_name, None)
    if not is_parametrized(module):
        module.parametrizations = ModuleDict()
    module.parametrizations[tensor_name] = functions
    return module


def _check(found: Any, tensor: Any, parametrization: Module) -> None:
    if not isinstance(found, Tensor) or found.shape != tensor.shape or found.dtype != tensor.dtype:
        got = f"{found.shape} and {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        name = type(parametrization).__name__
        raise ValueError(f"register_parametrization: expected {name} to give {tensor.shape} and {tensor.dtype}, got {got}")


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Is a tensor of the module computed: the one of that name, or any?"""
    found = module.__dict__.get("parametrizations")
    return isinstance(found, ModuleDict) and (len(found) > 0 if tensor_name is None else tensor_name in found)


def remove_parametrizations(module: Module, tensor_name: str, leave_parametrized: bool = True) -> Module:
    """Make an ordinary tensor of `module.<tensor_name>` again, with the value it has or, if not `leave_parametrized`, with θ's.

    Where θ is one tensor, it is this tensor, which optimisers may hold. Returns the module.
    Raises ValueError where the tensor is not parametrized, or θ is several tensors that it would have to be.
    """
    if not is_parametrized(module, tensor_name):
        owner = type(module).__name__
        raise ValueError(f"remove_parametrizations: expected a parametrized tensor of {owner}, got {tensor_name!r}")
    functions = module.parametrizations[tensor_name]
    if not functions.is_tensor and not leave_parametrized:
        raise ValueError(f"remove_parametrizations: {tensor_name!r} is computed from several tensors and cannot be one of them")
    with no_grad():
        value = functions() if leave_parametrized else None
    original = functions.originals()[0]
    if not functions.is_tensor:
        original = Parameter(value, original.requires_grad) if isinstance(original, Parameter) else value
    elif leave_parametrized:
        original.data = value
    del module.parametrizations[tensor_name]
    if not is_parametrized(module):
        del module.parametrizations
    (module.register_parameter if isinstance(original, Parameter) else module.register_buffer)(tensor_name, original)
    return module
