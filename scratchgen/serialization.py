r"""Files of tensors: `save` and `load`.

A file is safetensors: arrays under names, and nothing that could be run; nothing is ever unpickled. The names of a state
dict are its keys, so other programs read it, and theirs are read here. What is nested (dicts and lists of tensors, arrays,
numbers and texts, such as the state of an optimiser) is written under names like "optimizer/state/0/exp_avg", and how it
was nested stands, as JSON, in the file's metadata.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.tensors import Tensor

ENTRY = "scratchgen"  # in the metadata: one entry, since safetensors orders several at random, and equal files shall be equal
HELD = frozenset("bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 complex64".split())
_FOREIGN = {"BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "F16", "F32", "F64", "C64"}


def save(obj: Any, f: Any) -> None:
    """Write a tensor, a state dict, or nested dicts, lists and tuples of tensors, arrays, numbers, texts and None.

    `f` is a path, which holds the old file or the whole new one at any moment, or a file that is open for writing bytes.
    Tensors of a device come back to the host; that they require a gradient, and that they share memory, is not kept.
    Raises TypeError, before anything is written, for what such a file does not hold: a module (its `state_dict` is what can
    be saved), a function, numbers in long double.
    """
    from safetensors.numpy import save as as_bytes

    arrays: dict[str, np.ndarray] = {}
    try:
        tree = json.dumps({"state": pack(obj, "", arrays, "save")})
    except RecursionError:
        raise TypeError("save: expected dicts and lists that do not hold themselves, got one that does") from None
    raw = as_bytes(arrays, metadata={ENTRY: tree})
    if hasattr(f, "write"):
        f.write(raw)
    else:
        write_whole(Path(f), raw)


def load(f: Any) -> Any:
    """What `save` wrote to the path or open file `f`; of any other safetensors file, a dict from names to tensors.

    Tensors come back as tensors, arrays as arrays, on the host. Raises ValueError for what is no such file, or damaged.
    """
    if hasattr(f, "read"):
        raw, name = f.read(), str(getattr(f, "name", "the file"))
    else:
        raw, name = Path(f).read_bytes(), os.fspath(f)
    try:
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        about = header.pop("__metadata__", {})
        strange = next(((key, at["dtype"]) for key, at in header.items() if at["dtype"] not in _FOREIGN), None)
        if strange is None:
            return _loaded(raw, about)
    except Exception as error:  # of json, safetensors, or what strange content does to the code above
        said = " ".join(str(error).split()).rstrip(".")[:200]
        if raw[:4] == b"PK\x03\x04" or raw[:1] == b"\x80":  # (after the attempt: a right file may begin so)
            said = "if torch.save wrote it, write it anew with safetensors.torch.save_file: pickled code is not run here"
            raise ValueError(f"load: {name} is no safetensors file; {said}") from error
        raise ValueError(f"load: {name} is no safetensors file, or damaged ({type(error).__name__}: {said})") from error
    raise ValueError(f"load: {name} holds {strange[0]!r} as {strange[1]}, which NumPy has not; convert it to F32 first")


def _loaded(raw: bytes, about: dict[str, str]) -> Any:
    from safetensors.numpy import load as from_bytes

    arrays = from_bytes(raw)
    if ENTRY not in about:
        return {key: Tensor(array) for key, array in arrays.items()}
    return unpack(json.loads(about[ENTRY])["state"], arrays)


# ---------------------------------------------------------------------------------------------------------------------
# Trees
# ---------------------------------------------------------------------------------------------------------------------


def pack(value: Any, name: str, arrays: dict[str, np.ndarray], caller: str) -> Any:
    """JSON that stands for `value`; arrays move to `arrays` under their path in the tree, such as "model/fc.weight"."""
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        if array.dtype.name not in HELD:
            raise TypeError(f"{caller}: {name or 'the array'} is of {array.dtype}; expected one of {', '.join(sorted(HELD))}")
        key = name.encode("utf-8", "replace").decode() or "tensor"
        while key in arrays or key == "__metadata__":  # {"a/b": …} beside {"a": {"b": …}}; a name that the format reserves
            key += "'"
        # A copy in row order: safetensors writes the memory as it lies, whatever strides and byte order say.
        arrays[key] = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
        return {"tensor" if isinstance(value, Tensor) else "array": key}
    inside = f"{name}/" if name else ""
    if isinstance(value, dict):  # as pairs: a key may be a number
        for key in value:
            if type(key) not in (str, int):
                owner = name or "the dict"
                raise TypeError(f"{caller}: {owner} has the key {key!r:.80}; expected texts or whole numbers as keys")
        return {"dict": [[key, pack(item, f"{inside}{key}", arrays, caller)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(item, f"{inside}{i}", arrays, caller) for i, item in enumerate(value)]}
    if type(value) is float and not math.isfinite(value):
        return {"float": repr(value)}  # JSON has no such numbers
    if value is None or isinstance(value, str | bool) or type(value) in (int, float):
        return value
    hint = "; save its state_dict()" if hasattr(value, "state_dict") else ""
    expected = "tensors, arrays, numbers, texts, None, lists or dicts"
    raise TypeError(f"{caller}: {name or 'the object'} is a {type(value).__name__}; expected {expected}{hint}")


def unpack(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """What `pack` was given."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return Tensor(arrays[content])
    if kind == "array":
        return arrays[content].copy()  # (it lies in the bytes of the file, which cannot be written to)
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: unpack(item, arrays) for key, item in content}
    items = [unpack(item, arrays) for item in content]
    return tuple(items) if kind == "tuple" else items


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that at any moment the name holds either the old content or the new, never a part.

    A link is followed: the file that it names is written, and the link stays. Where writing fails, nothing is left behind.
    """
    raw = content.encode() if isinstance(content, str) else content
    path = Path(os.path.realpath(path))
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    temporary = path.with_name(f".{path.name}.tmp")  # in the same folder: a move across file systems is not atomic
    try:
        with open(temporary, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # the new name must be on disk, too, before anything is built on it
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
