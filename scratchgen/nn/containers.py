"""Modules that hold parameters: in a list, and by name. (Those that hold modules stand in `module`.)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from scratchgen.nn.module import Module, Named, Parameter
from scratchgen.tensors import Tensor


def _parameter(owner: Module, value: Any) -> Parameter:
    """The parameter itself, or one that copies a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(owner).__name__}: expected parameters or tensors, got {type(value).__name__}")
    return value if isinstance(value, Parameter) else Parameter(value)


class ParameterList(Module):
    """Parameters in a list, under the names "0", "1", …; a tensor becomes a parameter that copies it."""

    def __init__(self, values: Iterable[Tensor] = ()):
        super().__init__()
        self.extend(values)

    def _values(self) -> list[Parameter]:
        return [value for value in self.__dict__.values() if isinstance(value, Parameter)]

    def __len__(self) -> int:
        return len(self._values())

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self._values())

    def __getitem__(self, index: int | slice) -> Any:
        return ParameterList(self._values()[index]) if isinstance(index, slice) else self._values()[index]

    def __setitem__(self, index: int, value: Tensor) -> None:
        setattr(self, str(range(len(self))[index]), _parameter(self, value))

    def append(self, value: Tensor) -> ParameterList:
        self.register_parameter(str(len(self)), _parameter(self, value))
        return self

    def extend(self, values: Iterable[Tensor]) -> ParameterList:
        if isinstance(values, Tensor) or not isinstance(values, Iterable):
            raise TypeError(f"ParameterList: expected a list of parameters, got {type(values).__name__}")
        for value in list(values):
            self.append(value)
        return self

    __iadd__ = extend

    def extra_repr(self) -> str:
        return ", ".join(f"{i}: {tuple(p.shape)}" for i, p in enumerate(self))


class ParameterDict(Named):
    """Parameters by name; a tensor becomes a parameter that copies it."""

    kind = Parameter

    def __init__(self, parameters: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] = ()):
        super().__init__()
        self.update(parameters)

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.register_parameter(name, _parameter(self, value))

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {tuple(p.shape)}" for name, p in self.items())
