r"""Tensors: arrays that know where they came from and when they were last changed.

A tensor is four things: its array, its position in the graph of recorded ops (`edge`), the gradient that a sweep left in
it, and a stamp that dates the last change of its memory. This file holds what concerns the memory: how tensors are made of
numbers and become numbers again, and how they are changed in place. It knows no op and no derivative.

Arrays are frozen (NumPy's read-only flag) once a tensor holds them, so nothing that was saved for a backward sweep can
change unnoticed. All changes in place pass through `Writing`, which leaves a stamp; a backward sweep that meets an input
stamped later than its use refuses to go on, instead of yielding a wrong gradient.

Where do x + y, x.sum() and x.backward() come from? From the functions that compute them, in the files that import this
one: the line `@method` over a function makes it a method of tensors. `add` in ops/elementwise.py stands under
`@method("add", "__add__", reflected="__radd__")`, `backward` in autograd.py under `@method`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen import replay

Edge = tuple[Any, int, tuple[int, ...], np.dtype]  # a position in the graph: node, which of its outputs, shape, dtype

ticks = itertools.count(1)  # the times of nodes and of changes in place, on one line
last_write = [0]  # the time of the latest change in place of any tensor
UNWRITTEN = [0]  # the stamp of all tensors whose memory was neither changed nor viewed
SEALED = [0]  # the stamp of all results of recorded ops: they are never changed

new = object.__new__
_ndarray = np.ndarray


class _Recording(threading.local):
    """Are ops recorded? Each thread of Python has its own answer; `no_grad` and its kin in grad_mode.py change it."""

    on = True


recording = _Recording()

# Held while gradients are added up, or a change is dated, which other threads may be doing at the same time.
arrival = threading.Lock()
if hasattr(os, "register_at_fork"):  # a forked child finds the lock free
    os.register_at_fork(before=arrival.acquire, after_in_parent=arrival.release, after_in_child=arrival.release)


class Tensor:
    """An array that remembers where it came from.

    `data` its array (read-only; see `writing`) · `grad` the gradient that `backward` left here, or None ·
    `edge` its position in the graph (the op that made it, which of its outputs it is, shape, dtype), or None if no
    gradient can be asked for.
    """

    __slots__ = ("_data", "edge", "grad", "_stamp", "__weakref__")
    __array_ufunc__ = None  # array * tensor asks the tensor

    def __init__(self, data: Any, dtype: Any = None, device: str | None = None, *, requires_grad: bool = False):
        """Copy `data` (numbers, nested lists, an array or a tensor). Python floats become float32; arrays keep their dtype.

        The copy lives on the device of `data` unless a `device` is named.
        """
        if isinstance(data, Tensor):
            data = data._data
        try:
            array = np.array(data) if not hasattr(data, "dtype") else data.copy()
        except ValueError as error:
            raise ValueError(f"tensor: expected numbers in a regular nesting, got {data!r:.80}") from error
        array = array if hasattr(array, "flags") and isinstance(array.shape, tuple) else np.asarray(array)
        if dtype is None and array.dtype == np.float64 and not hasattr(data, "dtype") and not _has_numpy(data):
            dtype = np.float32
        if dtype is not None:
            array = array.astype(_dtype(dtype), copy=False)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if array.dtype.kind not in "fciub":
            raise TypeError(f"tensor: expected numbers, got {array.dtype}")
        self._data = freeze(array if device is None else devices.moved(array, devices.checked(device)))
        self.edge = None
        self.grad = None
        self._stamp = UNWRITTEN
        if requires_grad:
            self.requires_grad = True

    # What it is

    @property
    def data(self) -> np.ndarray:
        """The array, read-only. Assigning replaces it: by an array of the same shape and dtype."""
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        array = value._data if isinstance(value, Tensor) else _as_array(value)
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(
                f"Tensor.data: expected an array of shape {self.shape} and {self.dtype}, got {array.shape} and {array.dtype}"
            )
        with self.writing() as own:
            own[...] = array

    @property
    def _version(self) -> int:
        """The time of the last change in place of the tensor, or of one that shares its memory; 0: never."""
        return self._stamp[0]

    @property
    def node(self) -> Any:
        """The node of the graph whose output the tensor is, or None: an op that was recorded, or the leaf of an input."""
        return None if self.edge is None else self.edge[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def device(self) -> str:
        """Where the array lives: "cpu" or "cuda"."""
        return devices.of(self._data)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the length of one dimension."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """The number of dimensions."""
        return self._data.ndim

    def numel(self) -> int:
        """The number of elements."""
        return self._data.size

    def element_size(self) -> int:
        """Bytes of one element."""
        return self._data.itemsize

    # Out to NumPy and Python

    def numpy(self) -> np.ndarray:
        """The array, read-only; take a `.copy()` to write to. Refuses a tensor that requires a gradient."""
        if self.node is not None:
            raise RuntimeError("numpy: this tensor requires a gradient, which NumPy would lose; use .detach().numpy()")
        if not isinstance(self._data, _ndarray):
            raise TypeError("numpy: this tensor is on the device 'cuda'; bring it to the host first, with .cpu().numpy()")
        return self._data

    def item(self) -> float | int | bool:
        """The one element as a Python number."""
        if self._data.size != 1:
            raise ValueError(f"item: expected a tensor of one element, got shape {self.shape}")
        return self._data.item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return self._data.tolist()

    def detach(self) -> Tensor:
        """The same array, cut off from the graph."""
        t = wrap(self._data, None)
        t._stamp = own_stamp(self)
        return t

    def __deepcopy__(self, memo: dict) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError("deepcopy: expected a tensor made by the user, got the result of an op; use clone() or detach()")
        return _leaf(type(self), self._data, self.requires_grad)

    def __reduce__(self) -> tuple[Any, ...]:
        """What a copy in another process is made from: the elements and `requires_grad`, as in `deepcopy`."""
        if not self.is_leaf:
            raise RuntimeError("pickle: expected a tensor made by the user, got the result of an op; use detach()")
        return _leaf, (type(self), self._data, self.requires_grad)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return devices.moved(self._data, "cpu").__index__()

    def __bool__(self) -> bool:
        if self._data.size != 1:
            raise ValueError(f"a tensor of shape {self.shape} is neither true nor false; use .any() or .all()")
        return bool(self._data.item())

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a 0-d tensor has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        array = devices.moved(self._data, "cpu")
        text = np.array2string(array, separator=", ", precision=4, threshold=200, edgeitems=3, prefix="tensor(")
        dtype = "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype}"
        dtype += "" if isinstance(self._data, _ndarray) else f", device={self.device!r}"
        source = "" if self.node is None else ", requires_grad=True" if self.is_leaf else f", node={self.node!r}"
        return f"tensor({text}{dtype}{source})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self._data.size == 1 and spec else repr(self)

    __hash__ = object.__hash__  # tensors are told apart by identity, though == compares elements

    # Change in place

    @contextlib.contextmanager
    def writing(self) -> Iterator[np.ndarray]:
        """The array, writable inside the `with` (see `Writing`)."""
        with Writing([self]) as (array,):
            yield array

    def copy_(self, source: Any) -> Tensor:
        """Overwrite the elements with those of `source` (broadcast); shape and dtype stay.

        Raises RuntimeError where a graph is recorded that would not know of it: use `with no_grad():`.
        """
        self._refuse_recording("copy_", source)
        return self._overwrite(source)

    def zero_(self) -> Tensor:
        """Set every element to 0."""
        self._refuse_recording("zero_")
        return self._overwrite(0)

    def fill_(self, value: float) -> Tensor:
        """Set every element to `value`. Raises OverflowError where the dtype does not hold it."""
        self._refuse_recording("fill_", value)
        return self._overwrite(value if isinstance(value, Tensor) else np.asarray(value, self.dtype))

    def _refuse_recording(self, name: str, source: Any = None) -> None:
        for x in (self, source):
            if recording.on and isinstance(x, Tensor) and x.edge is not None:
                raise RuntimeError(
                    f"{name}: expected tensors that require no gradient, as a graph cannot record a change in place: "
                    "wrap it in `with no_grad():`"
                )

    def _overwrite(self, source: Any) -> Tensor:
        source = source._data if isinstance(source, Tensor) else _as_array(source)
        if source.shape != self.shape:
            try:
                source = np.broadcast_to(source, self.shape)
            except ValueError:
                raise ValueError(
                    f"copy_: expected shape {self.shape}, or one that broadcasts to it, got {source.shape}"
                ) from None
        with self.writing() as own:
            own[...] = devices.moved(source, self.device)
        return self


class Writing:
    """The arrays of tensors, writable inside the `with`: all changes in place (optimisers, initialisers, loading) use it.

    Raises RuntimeError for results of recorded ops, and for expanded tensors, whose elements share memory.
    """

    __slots__ = ("tensors", "opened")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        for t in tensors:
            if t._stamp is SEALED or not t.is_leaf:
                raise RuntimeError(
                    "expected a tensor made by the user, got (the memory of) a recorded op's result; change a clone() of it"
                )
            if 0 in t._data.strides and t._data.size > 1:
                raise RuntimeError(
                    "expected a tensor whose elements each have their own memory, got an expanded one: write to a clone() of it"
                )
        self.tensors = tensors

    def __enter__(self) -> list[np.ndarray]:
        self.opened: list[np.ndarray] = []
        with arrival:
            now = last_write[0] = next(ticks)
        try:
            for t in self.tensors:
                replay.changing(t, _copied, Tensor._overwrite)
                own_stamp(t)[0] = now
                self._open(t._data)
        except BaseException:  # somebody else protects the memory of one of them
            self.__exit__()
            raise
        return [t._data for t in self.tensors]

    def _open(self, array: Any) -> None:
        """Make an array writable, and first the array that it views. (Device arrays cannot be read-only: stamps must do.)"""
        if isinstance(array, _ndarray):
            self._open(array.base)
            self.opened.append(array)
            array.setflags(True)

    def __exit__(self, *error: object) -> None:
        for array in self.opened:
            array.setflags(False)


def tensor(data: Any, dtype: Any = None, device: str | None = None, *, requires_grad: bool = False) -> Tensor:
    """A new tensor that copies `data`. Python floats become float32, integers int64; arrays keep their dtype and device.

    Raises TypeError where `data` is not numbers or integers are asked for a gradient, ValueError where it is ragged.
    """
    return Tensor(data, dtype, device, requires_grad=requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor of `array`, dtype kept. PyTorch would share the memory; here nobody changes a tensor from outside: a copy."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected a NumPy array, got {type(array).__name__}")
    return Tensor(array)


# ---------------------------------------------------------------------------------------------------------------------
# For the files that build on tensors
# ---------------------------------------------------------------------------------------------------------------------


def method(*names: Any, reflected: str = "") -> Any:
    """Make the function below this line a method of tensors too: under its own name, or under the `names` listed.

    @method
    def exp(x): …                                       x.exp()
    @method("add", "__add__", reflected="__radd__")
    def add(x, y): …                                    x.add(y), x + y, and for 2 + x add(2, x)
    """

    def attach(function: Any, *names: str) -> Any:
        for name in names:
            setattr(Tensor, name, function)
        if reflected:

            def swapped(self: Tensor, other: Any) -> Any:
                return function(other, self)

            swapped.__name__, swapped.__module__ = reflected, function.__module__
            setattr(Tensor, reflected, swapped)
        return function

    if names and not isinstance(names[0], str):  # `@method` without parentheses
        (function,) = names
        return attach(function, getattr(function, "fget", function).__name__)
    return lambda function: attach(function, *names)


def constant(array: Any) -> Tensor:
    """A tensor around an array that was just made: no copy is taken, so nobody else may write to the array."""
    return wrap(freeze(array), None)


def wrap(array: Any, edge: Edge | None) -> Tensor:
    """A tensor around `array` at a position in the graph, without any copy or check."""
    t = new(Tensor)
    t._data = array
    t.edge = edge
    t.grad = None
    t._stamp = UNWRITTEN if edge is None else SEALED
    return t


def freeze(array: Any) -> Any:
    """The array, made read-only where it is NumPy's; NumPy's scalars become 0-d arrays."""
    if isinstance(array, np.generic):
        array = np.asarray(array)
    if isinstance(array, _ndarray):
        array.setflags(False)
    elif not hasattr(array, "__array_ufunc__"):
        raise TypeError(f"forward: expected an array, or a tuple of arrays, got {type(array).__name__}")
    return array


def _as_array(x: Any) -> Any:
    """`x` if it is an array, on any device; else an array that NumPy makes of it."""
    return x if devices.is_array(x) else np.asarray(x)


def _copied(t: Tensor) -> Any:
    return t._data.copy()


def stamp_of_base(y: Any, inputs: Sequence[Tensor], otherwise: list[int]) -> list[int]:
    """The stamp of the input whose memory an op's result y views, since a change of one changes both; of none: `otherwise`."""
    for x in inputs:
        if y.base is x._data or y.base is x._data.base:
            return own_stamp(x)
    return otherwise


def own_stamp(x: Tensor) -> list[int]:
    """The stamp that x shares with all tensors that view its memory; made when it is first needed."""
    if x._stamp is UNWRITTEN:
        x._stamp = [0]
    return x._stamp


def _dtype(dtype: Any) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype: expected a NumPy dtype such as float32, got {dtype!r}") from error
    return found


def _has_numpy(data: Any) -> bool:
    """Does a nest of lists hold NumPy numbers, whose dtype is to be kept?"""
    while isinstance(data, list | tuple) and data:
        data = data[0]
    return hasattr(data, "dtype")


def _leaf(kind: type[Tensor], array: Any, requires_grad: bool) -> Tensor:
    """A leaf with a copy of `array`: the memory that pickle made may be protected."""
    t = new(kind)
    t._data, t.edge, t.grad, t._stamp = freeze(array.copy()), None, None, UNWRITTEN
    t.requires_grad = requires_grad
    return t
