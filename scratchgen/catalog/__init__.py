r"""The catalog: everything differentiable that has a public name, one row each, and the check of every row.

    scratchgen gradcheck                         every row
    scratchgen gradcheck softmax nn.GRU          these rows; "ops", "functional", "calculus", "nn", "models": all of them
    scratchgen gradcheck mine.py:swish           your own function, op (a Function) or layer (a Module), from your own file

A function of your own needs inputs, at which its derivatives exist: arrays, or a function of a NumPy generator that
returns them, as its attribute `inputs` or beside it in the file, under its name followed by `_inputs`:

    def swish(x):                                # tensors in, tensors out
        return x * ops.sigmoid(x)

    def swish_inputs(rng):                       # floating arrays are checked; integers and booleans are passed on
        return rng.standard_normal((2, 3))       # one array, or a tuple of arrays

A class is called without arguments to make the layer; an instance is taken as it is. Exit status: 0 where all agree,
1 where a gradient is wrong, 2 where a name means nothing.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen import calculus, functional, nn
from scratchgen.autograd import Function
from scratchgen.catalog import compositions, layers, primitives
from scratchgen.catalog.row import Bound, Case, Row, case, of, row
from scratchgen.ops import inplace

__all__ = ["NOT_DIFFERENTIABLE", "ROWS", "SUBJECTS", "Bound", "Case", "Row", "case", "check", "find", "main", "of", "row"]

ROWS: dict[str, Row] = {}
for _row in primitives.ROWS + compositions.ROWS + layers.ROWS:
    if _row.name in ROWS:
        raise ValueError(f"catalog: {_row.name!r} has two rows")
    ROWS[_row.name] = _row

SUBJECTS = {
    "ops": [r.name for r in primitives.ROWS],
    "functional": [name for name in ROWS if name in functional.__all__],
    "calculus": [r.name for r in compositions.CALCULUS],
    "nn": [name for name in ROWS if name.startswith("nn.")],
    "models": [name for name in ROWS if name.startswith("models.")],
}

# Public names that have no row, under the reason.
NOT_DIFFERENTIABLE = {
    "gives booleans": [
        *"all allclose any eq ge gt isclose isfinite isinf isnan le lt ne logical_and logical_not logical_or".split(),
        "Tensor.bool",
        *"Tensor.__and__ Tensor.__or__ Tensor.__xor__ Tensor.__rand__ Tensor.__ror__ Tensor.__rxor__ Tensor.__invert__".split(),
    ],
    "gives whole numbers": "argmax argmin argsort one_hot Tensor.long Tensor.__floordiv__".split(),
    "draws at random": "bernoulli multinomial Tensor.bernoulli_ Tensor.normal_ Tensor.uniform_".split(),
    "changes a tensor in place, which no graph records": [
        *(f"Tensor.{name}_" for name in inplace.OPS),
        *"Tensor.__iadd__ Tensor.__isub__ Tensor.__imul__ Tensor.__itruediv__ Tensor.__setitem__".split(),
    ],
    "is made from nothing": "arange eye full linspace ones rand randint randn randperm zeros".split(),
    "takes shape and dtype of a tensor, not its values": [
        *"full_like ones_like rand_like randn_like zeros_like".split(),
        *(f"Tensor.new_{name}" for name in "empty full ones tensor zeros".split()),
    ],
    "holds or initialises modules, and computes nothing": (
        "nn.Module nn.ModuleDict nn.ModuleList nn.Parameter nn.ParameterDict nn.ParameterList nn.init nn.utils".split()
    ),
    "holds keys and values, and computes nothing": ["nn.KeyValueCache"],
    "changes tensors in place, or holds what is in this table": (
        "nn.utils.clip_grad_norm_ nn.utils.clip_grad_value_ nn.utils.vector_to_parameters nn.utils.parametrize "
        "nn.utils.parametrizations"
    ).split(),
    "is the checker": ["calculus.gradcheck"],
    "is made of models that are in this table": ["models.Prior"],
}


class UnknownName(LookupError):
    """A name that means nothing here; the message is one sentence."""


def find(name: str) -> list[Row]:
    """The rows that a name stands for: a module, "nn.Linear" or "Linear", "softmax" or "functional.softmax" or "F.softmax"."""
    if name in SUBJECTS:
        return [ROWS[n] for n in SUBJECTS[name]]
    if name in ROWS:
        return [ROWS[name]]
    last = name.rpartition(".")[2]
    shorter = {n.rpartition(".")[2]: n for n in reversed(ROWS)}
    if name in (last, f"ops.{last}", f"functional.{last}", f"F.{last}") and last in shorter:
        return [ROWS[shorter[last]]]
    for reason, names in NOT_DIFFERENTIABLE.items():
        if name in names or f"nn.{name}" in names:
            raise UnknownName(f"{name} has no gradient to check: it {reason}.")
    near = difflib.get_close_matches(name, {*SUBJECTS, *ROWS, *shorter}, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`scratchgen gradcheck` without a name checks all, and lists them."
    raise UnknownName(f"there is nothing called {name!r} to check; {hint}")


def check(row: Row, *, seed: int = 0) -> list[calculus.Report]:
    """gradcheck of each case of a row, to the highest order that the row promises."""
    if not row.order:
        return []
    return [
        calculus.gradcheck(
            f, *xs, order=row.order, seed=seed, elements=row.elements, name=f"{row.name}{one}", raise_exception=False
        )
        for one, f, xs in row.drawn(seed)
    ]


def _loaded(target: str) -> tuple[Any, tuple[Any, ...]]:
    """The function that `path/to/file.py:name` means, and its inputs."""
    path, _, name = target.rpartition(":") if ".py:" in target else (target, "", "")
    if not Path(path).is_file():
        raise UnknownName(f"there is no file {path!r}.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    f = getattr(module, name, None)
    if not callable(f):
        own = [n for n, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == spec.name]
        near = difflib.get_close_matches(name, own, n=3) if name else [n for n in own if not n.endswith("_inputs")][:6]
        what = f"{name!r} in {path} is of type {type(f).__name__}, not a function, op or Module" if f is not None else ""
        what = what or (f"{path} has no function {name!r}" if name else f"expected {path}:NAME, got no name")
        raise UnknownName(what + (f"; did you mean {', '.join(near)}?" if near else "."))
    inputs = getattr(f, "inputs", None) if not isinstance(f, type) or not issubclass(f, Function) else vars(f).get("inputs")
    inputs = vars(module).get(f"{name}_inputs") if inputs is None else inputs
    if inputs is None:
        raise UnknownName(
            f"{name} needs inputs to be checked at: define {name}_inputs(rng) beside it, returning them as arrays."
        )
    if callable(inputs):
        inputs = inputs(np.random.default_rng(0))
        if inputs is None:
            raise UnknownName(f"{name}_inputs(rng) returned None: expected an array, or a tuple of arrays.")
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    if isinstance(f, type):
        f = f.apply if issubclass(f, Function) else f()
    return f, tuple(x if isinstance(x, np.ndarray) or hasattr(x, "dtype") else np.asarray(x) for x in inputs)


def _sentence(target: str, error: BaseException) -> str:
    """What went wrong in the user's file, and in which line of it."""
    path = str(Path(target.rpartition(":")[0] or target).resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    lines += [error.lineno] if isinstance(error, SyntaxError) else []
    at = f" (line {lines[-1]} of {path})" if lines else ""
    return f"{target}: {type(error).__name__}: {str(error) or 'no message'}{at}"


def main(names: list[str], *, order: int = 2, curve: str | None = None) -> int:
    """Check the rows that are named, or all; print a line for each, and the whole report of one that fails.

    `order` and `curve` (a PNG of the error over the step) are for functions from one's own file.
    """
    jobs = {}
    own = [name for name in names if ".py:" in name or name.endswith(".py")]
    try:
        rows = {r.name: r for name in names or SUBJECTS for r in ([] if name in own else find(name))} | ({} if names else ROWS)
        if curve and len(names) != len(own) or curve and len(own) != 1:
            raise UnknownName("--curve draws one function: expected one path/to/file.py:NAME.")
        for target in own:
            try:
                jobs[target] = _loaded(target)
            except (UnknownName, KeyboardInterrupt):
                raise
            except BaseException as error:  # the user's code runs here: whatever it raises is told, in a sentence
                raise UnknownName(_sentence(target, error)) from error
    except UnknownName as error:
        print(f"gradcheck: {error}", file=sys.stderr)
        return 2
    width = max(map(len, [*rows, *jobs]))
    failed = 0
    for r in rows.values():
        start = time.perf_counter()
        failed += _printed(r.name, width, check(r), time.perf_counter() - start, r)
    for target, (f, inputs) in jobs.items():
        start = time.perf_counter()
        name = target.rpartition(":")[2]
        try:
            report = calculus.gradcheck(f, *inputs, order=order, name=name, curve=curve, raise_exception=False)
        except Exception as error:  # the user's function may raise anything here, too
            print(f"gradcheck: {_sentence(target, error)}", file=sys.stderr)
            return 2
        failed += _printed(target, width, [report], time.perf_counter() - start)
    total = len(rows) + len(jobs)
    if total > 1:
        print(f"{total - failed} of {total} agree" + (f", {failed} are WRONG" if failed else ""))
    return 1 if failed else 0


def _printed(name: str, width: int, reports: list[calculus.Report], seconds: float, row: Row | None = None) -> bool:
    """The line of a row, and whether it failed."""
    wrong = [report for report in reports if not report]
    compared, error = sum(r.compared for r in reports), max((r.error for r in reports), default=0.0)
    cases = f"{len(reports):3} case{'s' * (len(reports) != 1):1}"
    note = "" if row is None or row.order == 2 else f"   order {row.order} only: {row.why}"
    verdict = "WRONG" if wrong else "ok" if reports else "not checked"
    print(f"{name:{width}}  {cases}  {compared:5} comparisons  largest error {error:7.1e}  {seconds:6.2f} s  {verdict}{note}")
    for report in wrong:
        print("  " + str(report).replace("\n", "\n  "))
    return bool(wrong)
