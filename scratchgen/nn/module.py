r"""Modules: functions with parameters.

A module is an ordinary object. Whatever parameters and modules stand among its attributes are its own; nothing is
registered, except that a tensor which is no parameter but belongs to the state (a running mean) is named by
`register_buffer`. The names of attributes, joined by dots, are the keys of `state_dict`, and are PyTorch's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from scratchgen import device as devices
from scratchgen.grad_mode import no_grad
from scratchgen.hooks import RemovableHandle, checked
from scratchgen.nn.hooks import ModuleHooks
from scratchgen.ops.operands import array_of
from scratchgen.tensors import Tensor, constant


class Parameter(Tensor):
    """A tensor that is learned: a copy of `data`, which requires a gradient unless told otherwise.

    Raises TypeError where `data` is not of a floating dtype and a gradient is asked for.
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True, *, dtype: Any = None):
        super().__init__(data, dtype, requires_grad=requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


class LoadResult(NamedTuple):
    """What `load_state_dict(strict=False)` did not find, and what it had no use for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """The base of every layer and model: a subclass makes its parameters in `__init__` and computes in `forward`.

    class Affine(Module):
        def __init__(self, n):
            super().__init__()
            self.weight = Parameter(np.ones(n, np.float32))

        def forward(self, x):
            return x * self.weight
    """

    training: bool = True
    _hooks: ModuleHooks | None = None

    def __init__(self) -> None:
        pass

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.forward is missing")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options) if self._hooks is None else self._hooks.call(self, inputs, options)

    # Hooks

    def _own_hooks(self) -> ModuleHooks:
        if self._hooks is None:
            self._hooks = ModuleHooks()
        return self._hooks

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Have hook(module, inputs) called before `forward`; what it returns, if not None, are the inputs instead.

        `with_kwargs`: hook(module, inputs, options), which returns None or both. `prepend`: before the hooks so far.
        """
        checked("register_forward_pre_hook", hook)
        return RemovableHandle(self._own_hooks().before, (hook, with_kwargs), first=prepend)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Have hook(module, inputs, result) called after `forward`; what it returns, if not None, is the result instead.

        `with_kwargs`: hook(module, inputs, options, result). `prepend`: before the hooks so far.
        """
        checked("register_forward_hook", hook)
        return RemovableHandle(self._own_hooks().after, (hook, with_kwargs), first=prepend)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Have hook(module, grad_input, grad_output) called when a sweep has the gradients of all inputs and of all results.

        Both are tuples: None stands for what requires no gradient, zeros for a result that nothing used. What the hook
        returns, if not None, replaces grad_input. Only inputs given by position are counted. Where no input
        requires a gradient the hook is called as soon as those of the results are known.
        """
        checked("register_full_backward_hook", hook)
        return RemovableHandle(self._own_hooks().backward, hook, first=prepend)

    # What it is made of

    def __getattr__(self, name: str) -> Any:
        """Asked for what is not there: a tensor that is computed (see `nn.utils.parametrize`), or nothing."""
        computed = self.__dict__.get("parametrizations")
        if isinstance(computed, ModuleDict) and name in computed:
            return computed[name]()
        return object.__getattribute__(self, name)  # raises, in the usual words

    def __setattr__(self, name: str, value: Any) -> None:
        computed = self.__dict__.get("parametrizations")
        if isinstance(computed, ModuleDict) and name in computed:
            computed[name].assign(value)
            return
        before = self.__dict__.get(name)
        if before is not None and value is not None:  # such an assignment would silently take weights out of the model
            for kind, what in ((Parameter, "a Parameter"), (Module, "a Module")):
                if isinstance(before, kind) and not isinstance(value, kind):
                    got = f"{type(value).__name__}; `del` it first"
                    raise TypeError(f"{type(self).__name__}.{name}: expected {what} or None, got {got}")
            if name in self._buffer_names() and not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(self).__name__}.{name}: expected a tensor, as it is a buffer, got {type(value).__name__}"
                )
        object.__setattr__(self, name, value)

    def _buffer_names(self) -> dict[str, bool]:
        """Name of each buffer of this module -> whether it belongs to the state dict."""
        return self.__dict__.get("_buffers", {})

    def _new_name(self, name: str) -> str:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"{type(self).__name__}: expected a name without dots, not empty, got {name!r}")
        if hasattr(type(self), name):
            raise ValueError(f"{type(self).__name__}: the name {name!r} is taken by a method or attribute of the class")
        return name

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Count the tensor `self.<name>` to the state: it is converted, saved and loaded with the module, not learned.

        Without `persistent` it stays out of the state dict.
        """
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"register_buffer: expected a tensor or None for {name!r}, got {type(tensor).__name__}")
        object.__setattr__(self, self._new_name(name), tensor)
        self.__dict__.setdefault("_buffers", {})[name] = persistent

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """self.<name> = param, for a name that is computed."""
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(f"register_parameter: expected a Parameter or None for {name!r}, got {type(param).__name__}")
        setattr(self, self._new_name(name), param)

    def add_module(self, name: str, module: Module | None) -> None:
        """self.<name> = module, for a name that is computed."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module: expected a Module or None for {name!r}, got {type(module).__name__}")
        setattr(self, self._new_name(name), module)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Name and module of the attributes that are modules, each module once."""
        seen: set[int] = set()
        for name, value in list(self.__dict__.items()):
            if isinstance(value, Module) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def children(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def named_modules(
        self, memo: set[int] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module, under the name `prefix`, and all below it; a shared one comes once unless told otherwise."""
        memo = set() if memo is None else memo
        if id(self) in memo:
            return
        if remove_duplicate:
            memo.add(id(self))
        yield prefix, self
        for name, value in list(self.__dict__.items()):
            if isinstance(value, Module):
                yield from value.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def get_submodule(self, target: str) -> Module:
        """The module of a dotted name, "" being this one. Raises AttributeError where there is none."""
        module: Any = self
        for name in target.split(".") if target else []:
            module = getattr(module, name, None)
            if not isinstance(module, Module):
                raise AttributeError(f"{type(self).__name__} has no module {target!r}: there is none under {name!r}")
        return module

    def _named_tensors(
        self, own: Callable[[Module], Iterable[tuple[str, Any]]], prefix: str, recurse: bool, once: bool
    ) -> Iterator[tuple[str, Any]]:
        """What `own` lists of each module, under its full name; a tensor that is shared once or under all its names."""
        seen: set[int] = set()
        for path, module in self.named_modules(prefix=prefix, remove_duplicate=once) if recurse else [(prefix, self)]:
            for name, value in own(module):
                if value is not None and not (once and id(value) in seen):
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Full name and parameter, in the order of definition; a shared one comes once, under its first name."""
        return self._named_tensors(_own_parameters, prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Full name and buffer, also of those that are not persistent."""
        return self._named_tensors(_own_buffers, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return (b for _, b in self.named_buffers(recurse=recurse))

    def num_parameters(self) -> int:
        """The number of numbers that are learned, those of a shared parameter counted once."""
        return sum(p.numel() for p in self.parameters())

    # State

    def state_dict(self, *, prefix: str = "") -> dict[str, Tensor]:
        """Name -> tensor, for all parameters and persistent buffers, shared ones under each name.

        The tensors need no gradient and share the memory of the module, as in PyTorch: what is written into them is
        written into the module, and a state to return to is {name: t.clone() for name, t in module.state_dict().items()}.
        """
        return {name: tensor.detach() for name, tensor in self._state(prefix)}

    def _state(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Module after module: parameters, then buffers, then what lies below."""
        yield from self._named_tensors(_own_parameters, prefix.rstrip("."), False, False)
        yield from self._named_tensors(_own_persistent, prefix.rstrip("."), False, False)
        for name, value in list(self.__dict__.items()):
            if isinstance(value, Module):
                yield from value._state(f"{prefix}{name}.")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Overwrite the state with tensors, arrays or what `np.asarray` takes, of the same names and shapes; dtypes stay.

        All or nothing: raises ValueError, before anything is written, where a shape or kind of number does not fit, or,
        if `strict`, a key is missing or unexpected. Without `strict` those are returned instead.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"load_state_dict: expected a mapping from names to tensors, got {type(state_dict).__name__}")
        own = dict(self._state(""))
        older: dict[str, str] = {}
        for path, module in self.named_modules(remove_duplicate=False):
            older |= module._older_names(path)
        arrays = {name if name in own else older.get(name, name): array_of(value) for name, value in state_dict.items()}
        missing, unexpected = [name for name in own if name not in arrays], [name for name in arrays if name not in own]
        wrong = []
        for name, tensor in own.items():
            if name in arrays and arrays[name].shape != tensor.shape:
                wrong.append(f"{name} (expected {tensor.shape}, got {arrays[name].shape})")
            elif name in arrays and not np.can_cast(arrays[name].dtype, tensor.dtype, "same_kind"):
                wrong.append(f"{name} (expected {tensor.dtype}, got {arrays[name].dtype})")
        faults = [("wrong shapes or dtypes", wrong)]
        if strict:
            faults = [("missing keys", missing), ("unexpected keys", unexpected), *faults]
        if any(names for _, names in faults):
            text = "; ".join(f"{what} {', '.join(names)}" for what, names in faults if names)
            raise ValueError(f"load_state_dict: expected the state of this {type(self).__name__}, got {text}")
        with no_grad():
            for name, tensor in own.items():
                if name in arrays:
                    tensor.copy_(arrays[name])
        return LoadResult(missing, unexpected)

    def _older_names(self, path: str) -> dict[str, str]:
        """Keys of states in an earlier form, and what they are called now, for a module under the name `path`."""
        return {}

    # Modes

    def train(self, mode: bool = True) -> Module:
        """Behave as in training (dropout drops, batch norm uses the batch), or, with False, as in evaluation."""
        if not isinstance(mode, bool | np.bool_):
            raise TypeError(f"train: expected True or False, got {mode!r}")
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Module:
        """train(False)"""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Let the parameters be learned, or not."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or set those that exist to zeros."""
        for p in self.parameters():
            if p.grad is not None:
                p.grad = None if set_to_none else constant(np.zeros_like(p.grad.data))

    def apply(self, fn: Callable[[Module], Any]) -> Module:
        """Call `fn` on every module below and then on this one."""
        seen: set[int] = set()

        def visit(module: Module) -> None:
            if id(module) not in seen:
                seen.add(id(module))
                for child in module.children():
                    visit(child)
                fn(module)

        visit(self)
        return self

    def to(self, *args: Any, dtype: Any = None, device: str | None = None) -> Module:
        """In place: parameters, their gradients, and buffers on another device, or those of floating dtype in another.

        Move a module before its optimiser takes the first step, whose state lies beside the parameters.
        """
        for arg in args:
            if devices.is_name(arg):
                device = arg
            else:
                dtype = arg
        if device is not None:
            device = devices.checked(device)
            for tensor in [*self.parameters(), *self.buffers()]:
                if tensor.device != device:
                    _convert(tensor, devices.moved(tensor._data, device), lambda g: g.to(device))
        if dtype is not None:
            dtype = np.dtype(dtype)
            if dtype.kind != "f":
                raise TypeError(f"to: expected a floating dtype, got {dtype}")
            for tensor in [*self.parameters(), *self.buffers()]:
                if tensor.dtype.kind == "f" and tensor.dtype != dtype:
                    _convert(tensor, tensor._data.astype(dtype), lambda g: g.to(dtype))
        return self

    @property
    def device(self) -> str:
        """Where its parameters are; "cpu" without any."""
        return next((p.device for module in self.modules() for _, p in _own_parameters(module)), "cpu")

    def cpu(self) -> Module:
        """to("cpu")"""
        return self.to("cpu")

    def float(self) -> Module:
        """to(float32)"""
        return self.to(np.float32)

    def double(self) -> Module:
        """to(float64)"""
        return self.to(np.float64)

    # Pictures

    def extra_repr(self) -> str:
        """What `repr` shows of a layer besides its modules."""
        return ""

    def _shown(self, *names: str) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def __repr__(self) -> str:
        lines = [
            f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.__dict__.items() if isinstance(child, Module)
        ]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return f"{type(self).__name__}(\n  " + "\n  ".join([extra] * bool(extra) + lines) + "\n)"


def _own_parameters(module: Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in module.__dict__.items() if isinstance(value, Parameter)]


def _own_buffers(module: Module) -> list[tuple[str, Any]]:
    return [(name, module.__dict__.get(name)) for name in module._buffer_names()]


def _own_persistent(module: Module) -> list[tuple[str, Any]]:
    return [(name, module.__dict__.get(name)) for name, persistent in module._buffer_names().items() if persistent]


def _convert(tensor: Tensor, array: Any, convert: Callable[[Tensor], Tensor]) -> None:
    """Another array for a tensor that others hold too: optimisers, other modules. `convert` does the same to a gradient."""
    wanted, grad, node = tensor.requires_grad, tensor.grad, tensor.node
    with tensor.writing():  # so that a graph which saved this tensor refuses to be swept
        pass
    tensor.requires_grad_(False)  # a new node: the old one, in old graphs, promises gradients of the old dtype
    tensor._data = constant(array)._data
    tensor.requires_grad_(wanted)
    if wanted:
        tensor.node.hooks = node.hooks
    with no_grad():
        tensor.grad = None if grad is None else convert(grad.detach())


# ---------------------------------------------------------------------------------------------------------------------
# Modules that hold modules
# ---------------------------------------------------------------------------------------------------------------------


def _module(owner: Any, value: Any) -> Module:
    if not isinstance(value, Module):
        raise TypeError(f"{type(owner).__name__}: expected modules, got {type(value).__name__}")
    return value


class _Row(Module):
    """Modules in an order, under the names "0", "1", … or under names of their own."""

    def _items(self) -> list[tuple[str, Module]]:
        return [(name, value) for name, value in self.__dict__.items() if isinstance(value, Module)]

    def _renumber(self, modules: Iterable[Module]) -> None:
        modules = [_module(self, module) for module in modules]
        for name, _ in self._items():
            del self.__dict__[name]
        for i, module in enumerate(modules):
            self.add_module(str(i), module)

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[Module]:
        return iter([module for _, module in self._items()])

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(dict(self._items()[index]) if isinstance(self, Sequential) else list(self)[index])
        return self._items()[self._place(index)][1]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, self._items()[self._place(index)][0], _module(self, module))

    def __delitem__(self, index: int | slice) -> None:
        kept = list(self)
        del kept[index]
        self._renumber(kept)

    def _place(self, index: int) -> int:
        if not hasattr(index, "__index__"):
            raise TypeError(f"{type(self).__name__}: expected a position or a slice, got {index!r}")
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__}: expected a position within {len(self)} modules, got {index}")
        return index

    def append(self, module: Module) -> Any:
        name = next(str(i) for i in itertools.count(len(self)) if str(i) not in self.__dict__)
        self.add_module(name, _module(self, module))
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        modules = list(self)
        modules.insert(index, _module(self, module))
        self._renumber(modules)
        return self


class Sequential(_Row):
    """y = f_n(… f_2(f_1(x))): Sequential(f_1, …, f_n), or Sequential({"name": f_1, …}) for names of one's own."""

    def __init__(self, *modules: Any):
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, _module(self, module))
        else:
            self.extend(modules)

    def forward(self, input: Any) -> Any:
        for module in self:
            input = module(input)
        return input


class ModuleList(_Row):
    """Modules in a list; what is computed with them is up to the module that holds it."""

    def __init__(self, modules: Iterable[Module] = ()):
        super().__init__()
        self.extend(modules)


class Named(Module):
    """Members of one `kind` by name, as a dict has them: the base of `ModuleDict` and `ParameterDict`."""

    kind: type

    def update(self, members: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        for name, member in dict(members).items():
            self[name] = member

    def __getitem__(self, name: str) -> Any:
        found = self.__dict__.get(name)
        if not isinstance(found, self.kind):
            raise KeyError(name)
        return found

    def __setitem__(self, name: str, member: Any) -> None:
        raise NotImplementedError

    def __delitem__(self, name: str) -> None:
        self[name]  # raises KeyError for another attribute
        del self.__dict__[name]

    def pop(self, name: str) -> Any:
        member = self[name]
        del self[name]
        return member

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def keys(self) -> list[str]:
        return [name for name, value in self.__dict__.items() if isinstance(value, self.kind)]

    def values(self) -> list[Any]:
        return [self.__dict__[name] for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self.__dict__[name]) for name in self.keys()]


class ModuleDict(Named):
    """Modules by name."""

    kind = Module

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()):
        super().__init__()
        self.update(modules)

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, _module(self, module))


# ---------------------------------------------------------------------------------------------------------------------
# What constructors check
# ---------------------------------------------------------------------------------------------------------------------


def blank(owner: Module, shape: tuple[int, ...], dtype: Any) -> Parameter:
    """A parameter of zeros, to be initialised; float32 unless told otherwise."""
    dtype = np.dtype(np.float32 if dtype is None else dtype)
    if dtype.kind != "f":
        raise TypeError(f"{type(owner).__name__}: expected a floating dtype, got {dtype}")
    return Parameter(np.zeros(shape, dtype))


def whole(owner: Module, name: str, value: Any, least: int = 1) -> int:
    """`value` as a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{type(owner).__name__}: expected {name} to be a whole number of at least {least}, got {value!r}")
    return int(value)


def number(owner: Module, name: str, value: Any, low: float, high: float) -> float:
    """`value` as a number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not low <= value <= high:
        raise ValueError(f"{type(owner).__name__}: expected {name} to be a number from {low} to {high}, got {value!r}")
    return value
