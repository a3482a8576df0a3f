"""A stand-in for CuPy on a machine without a GPU: arrays whose memory NumPy may not touch.

Like CuPy's, a `DeviceArray` computes through NumPy's protocols, takes Python numbers and NumPy scalars as operands but no
NumPy array, and refuses to become one silently. It refuses a little more than CuPy does, and never less: methods of
ufuncs (`np.add.at`), generalised ufuncs (`np.matmul`; the operator @ works), NumPy arrays as an index or as a value to
assign. So whatever runs on it makes no round trip over the host but by `asnumpy` and by reading single elements
(`item`, `bool`, `float`, `int`), and those are counted in `reads`.
"""

from types import SimpleNamespace

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from kernels.backends import SUBJECTS

reads = []  # one entry for each time that the host waited for a value


class Flags:
    """What there is on a device: nothing is read-only there."""

    __slots__ = ("c_contiguous", "f_contiguous", "owndata")

    def __init__(self, host):
        self.c_contiguous, self.f_contiguous, self.owndata = host.c_contiguous, host.f_contiguous, host.owndata


class DeviceArray(NDArrayOperatorsMixin):
    __slots__ = ("host", "base")
    __hash__ = None

    def __init__(self, host, base=None):
        self.host, self.base = host, base

    # The protocols

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if method != "__call__" or ufunc.signature is not None:
            return NotImplemented
        out = out or ()
        for x in (*inputs, *out):
            if isinstance(x, np.ndarray):
                raise TypeError(f"Unsupported type {type(x)}")
        return wrapped(ufunc(*map(opened, inputs), **({"out": tuple(map(opened, out))} if out else {}), **kwargs), *out)

    def __array_function__(self, function, types, args, kwargs):
        refuse_numpy(args)
        refuse_numpy(list(kwargs.values()))
        return wrapped(function(*opened(args), **{key: opened(value) for key, value in kwargs.items()}), self)

    @property
    def __cuda_array_interface__(self):
        return {**self.host.__array_interface__, "version": 3}

    # What an array is

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    itemsize = property(lambda self: self.host.itemsize)
    nbytes = property(lambda self: self.host.nbytes)
    strides = property(lambda self: self.host.strides)
    flags = property(lambda self: Flags(self.host.flags))
    T = property(lambda self: wrapped(self.host.T, self))
    real = property(lambda self: wrapped(self.host.real, self))

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        return iter([self[i] for i in range(len(self))])

    def __getitem__(self, index):
        refuse_numpy(index)
        return wrapped(self.host[opened(index)], self)

    def __setitem__(self, index, value):
        refuse_numpy(index)
        refuse_numpy(value)
        self.host.flags.writeable = True  # what the stand-in was made from may be frozen
        self.host[opened(index)] = opened(value)

    def __matmul__(self, other):
        refuse_numpy(other)
        return wrapped(self.host @ opened(other))

    def __getattr__(self, name):
        method = getattr(self.host, name)
        if name not in METHODS or not callable(method):
            raise AttributeError(name)

        def call(*args, **kwargs):
            refuse_numpy(args)
            return wrapped(method(*opened(args), **{key: opened(value) for key, value in kwargs.items()}), self)

        return call

    # Where the host waits

    def item(self):
        reads.append(self.shape)
        return self.host.item()

    def __bool__(self):
        return bool(self.item())

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __format__(self, spec):
        return format(self.item(), spec)


METHODS = set(
    """all any argmax argmin astype clip copy cumsum dot fill max mean min prod ravel repeat reshape squeeze sum
    swapaxes take tolist transpose var std view""".split()
)


def opened(x):
    """The NumPy arrays inside, for NumPy to compute with."""
    if isinstance(x, DeviceArray):
        return x.host
    if type(x) in (tuple, list):
        return type(x)(map(opened, x))
    return x


def wrapped(y, *sources):
    """What NumPy made, as it would lie on the device."""
    for x in sources:
        if isinstance(x, DeviceArray) and y is x.host:
            return x
    if isinstance(y, np.generic):
        return DeviceArray(np.asarray(y))
    if isinstance(y, np.ndarray):
        owner = next((x for x in sources if isinstance(x, DeviceArray) and np.shares_memory(y, x.host)), None)
        return DeviceArray(y, None if owner is None else owner if owner.base is None else owner.base)
    if type(y) in (tuple, list):
        return type(y)([wrapped(part, *sources) for part in y])
    if isinstance(y, float):  # a kernel that answers with a number has read it
        reads.append(())
    return y


def refuse_numpy(x):
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: an array of the host among those of the device")
    if isinstance(x, tuple | list):
        for part in x:
            refuse_numpy(part)


class Library:
    """What `scratchgen.device` asks of CuPy."""

    ndarray = DeviceArray
    sent = 0  # bytes brought to the device

    def asarray(self, x):
        if isinstance(x, DeviceArray):
            return x
        self.sent += x.nbytes
        return DeviceArray(np.array(x))

    @staticmethod
    def asnumpy(x):
        reads.append(x.shape)
        return x.host.copy()


def by_reference(reference):
    """A backend for device arrays that computes with the reference: to look at the engine apart from the kernels."""

    def kernel(name):
        def call(*args, **kwargs):
            every = [*args, *kwargs.values()]
            refuse_numpy(every)
            for x in every:
                if isinstance(x, DeviceArray):
                    x.host.flags.writeable = True
            y = getattr(reference, name)(*opened(args), **{key: opened(value) for key, value in kwargs.items()})
            return wrapped(y, *every)

        return call

    module = SimpleNamespace(**{name: kernel(name) for name in vars(reference)})
    return SimpleNamespace(**dict.fromkeys(SUBJECTS, module))
