r"""Does the suite notice? Every piece of code that computes a gradient is edited, one edit at a time, and the tests run.

    python -m tests.mutate                              every mutant (not part of the suite: eight minutes on two cores)
    python -m tests.mutate scratchgen/ops/fused.py      those of one file
    python -m tests.mutate --only Softmax.backward      those of functions so called
    python -m tests.mutate --list                       the edits, without running anything

An edit changes the syntax tree of one function: a sign, a factor 1.01, operands swapped, a term or a factor dropped, a
reduction or a transpose or a copy dropped, an index off by one, `=` or `+=` where repeats have to add up, a comparison
loosened, a branch never or always taken, a statement or a guard left out. `FAULTS` are edits of several
lines, planted in the checkers. A mutant that no test notices is a survivor; those listed in `equivalent.txt` compute
the same gradients as the original, for the reason that stands there. Exit status: 0 if all others are killed. The last full
run is recorded in `mutants.txt` (`--out tests/mutants.txt`).

Nothing in the tree is changed. A copy of it is imported and its tests collected once; one run of them tells which test
enters which function; then, for each mutant, a forked process swaps the function's code and runs the tests that enter
it, those that killed its siblings first, until one fails. Where none does, no test would.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import copy
import gc
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "accuracy anomaly autograd catalog checkpoint edges gradcheck gradients laws models nn ops optim reference resampling "
    "tensors"
).split()  # tests/test_….py whose names begin so
FIRST = 1.5  # seconds of processor time for a mutant in the first round; what survives gets ten times that in the second

# What computes gradients, by file. Functions of these names only; None: all of them.
ENGINE = (
    "Function.apply Function._several Function.inputs Function._refuse_changed Function.outputs Function.needs_input_grad "
    "Function.vjp_composed Function.release Leaf.accumulate Alias.forward Alias.backward _sweep _leading_to vjp_through "
    "_unbroadcast grad _seeds backward Tensor.detach Writing.__init__ Writing.__enter__ Writing._open wrap constant "
    "freeze stamp_of_base own_stamp GradientMemory.add GradientMemory.owned_or_copied "
    "GradientMemory.is_owned GradientMemory._references Start.backward _fill _may_hide call_hooks register_hook "
    "hooked retain_grad"
).split()
SWEEP = (
    "_sweep _leading_to _may_hide _unbroadcast vjp_through Leaf.accumulate Function.needs_input_grad Function.vjp_composed"
).split()
# Of a model, beside its losses:
STEP = {"forward", "elbo", "training_step", "penalty", "condition", "slopes", "zero_centred", "one_centred", "between"}
NOT_HERE = {"Report.draw", "one_hot"}  # a picture; whole numbers


def listed(path: Path) -> dict[str, str]:
    """Survivors that compute the same gradients: "function: edit" -> the reason, under which it stands in the file."""
    found: dict[str, str] = {}
    reason = ""
    for line in path.read_text().splitlines():
        if line.startswith("    "):
            found[line[4:]] = reason
        else:
            reason = line
    return found


EQUIVALENT = listed(Path(__file__).with_name("equivalent.txt"))


# Faults of more than one edit, or that no operator makes: name, file, function, [(text, instead)].
FAULTS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("tolerance × 1000", "calculus.py", "gradcheck", [("Report(name, tolerance)", "Report(name, tolerance * 1000)")]),
    ("tolerance × 3", "calculus.py", "gradcheck", [("Report(name, tolerance)", "Report(name, tolerance * 3)")]),
    ("ones for the cotangent", "calculus.py", "_Checker.check", [("self.rng.standard_normal(y.shape)", "np.ones(y.shape)")]),
    ("first order only", "calculus.py", "_Checker.check", [("order < highest", "order > highest")]),
    ("failures are not listed", "calculus.py", "_Checker._judge", [("self.report.failures.append(finding)", "pass")]),
    ("the verdict is always yes", "calculus.py", "gradcheck", [("if not report and raise_exception", "if False")]),
    (
        "neither elements nor direction",
        "calculus.py",
        "_Checker.check",
        [
            ("self._elements(order, name, x, g.data, evaluate, value, largest, rough)", "pass"),
            ("self._direction(order, leaves, analytic, value, largest, rough)", "pass"),
        ],
    ),
    (
        "no elements",
        "calculus.py",
        "_Checker.check",
        [("self._elements(order, name, x, g.data, evaluate, value, largest, rough)", "pass")],
    ),
    (
        "no direction",
        "calculus.py",
        "_Checker.check",
        [("self._direction(order, leaves, analytic, value, largest, rough)", "pass")],
    ),
    (
        "kept graph not compared",
        "calculus.py",
        "_Checker.check",
        [("self._compare(order, f'{name}, kept graph against plain', g.data, kept.data, largest)", "pass")],
    ),
    (
        "only the first input",
        "calculus.py",
        "_Checker.check",
        [("zip(leaves, analytic", "zip(leaves[:1], analytic[:1]"), (", again, ", ", again[:1], ")],
    ),
    (
        "differences against themselves",
        "calculus.py",
        "_Checker._elements",
        [("analytic, numeric, largest", "numeric, numeric, largest")],
    ),
    ("parameters forgotten", "calculus.py", "gradcheck", [("hasattr(f, 'named_parameters')", "False")]),
    (
        "cotangent not a variable of the second order",
        "calculus.py",
        "_Checker.check",
        [("leaves + [(f'the cot", "leaves + 0 * [(f'the cot")],
    ),
    ("the inputs' own random numbers for the cotangents", "calculus.py", "gradcheck", [("[*b'cotangents', seed]", "seed")]),
    (
        "the cotangents are small whole numbers",
        "calculus.py",
        "_Checker.check",
        [("self.rng.standard_normal(y.shape)", "np.ones(y.shape) * 2")],
    ),
    ("what the sweep refuses is let pass", "calculus.py", "gradcheck", [("report.refusal = str(error)", "pass")]),
    ("relative to the largest gradient alone", "calculus.py", "_Checker._floor", [("0.001 * largest", "largest")]),
]


# ---------------------------------------------------------------------------------------------------------------------
# Which functions
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Target:
    """A function to be edited."""

    path: str
    name: str  # qualified
    node: ast.FunctionDef
    tree: ast.Module
    full: bool  # with every operator, or, where the gradient comes by composition, without those for branches and statements

    @property
    def key(self) -> str:
        return f"{self.path}:{self.name}"

    @property
    def core(self) -> bool:
        """Is it a gradient itself, not something that a gradient is made of?"""
        return self.name in SWEEP or self.name.endswith(("backward", "composed", "_grad", "scatter_add"))


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods with their qualified names; those inside functions belong to these."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node


def mentioned(tree: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


def targets(root: Path) -> list[Target]:
    found = []
    files = sorted(str(p.relative_to(root)) for top in ("kernels", "scratchgen") for p in (root / top).rglob("*.py"))
    trees = {path: ast.parse((root / path).read_text()) for path in files}
    used: set[str] = set()  # names that a backward mentions: ops that are each other's gradients, helpers
    for path, tree in trees.items():
        if path.startswith("scratchgen/ops/"):
            for name, node in functions(tree):
                if name.endswith((".backward", ".composed")):
                    used |= mentioned(node)
    for path, tree in trees.items():
        module = path.removeprefix("scratchgen/").removesuffix(".py")
        for name, node in functions(tree):
            owner, _, last = name.rpartition(".")
            gradient = last in ("backward", "composed") or (last == "forward" and owner in used)
            if path in ("kernels/reference.py", "kernels/reference_activations.py"):
                full = True
            elif module in ("tensors", "gradients", "autograd"):
                if name not in ENGINE:
                    continue
                full = True
            elif module == "calculus":
                full = True
            elif module.startswith("ops/"):
                if module in ("ops/__init__", "ops/creation") or (owner and last not in ("forward", "backward", "composed")):
                    continue
                full = gradient or last == "numbers_first" or (last.startswith("_") and last in used)
            elif module.startswith("models/") and (last in STEP or last.endswith("loss")):
                full = last != "forward"
            elif module in ("functional", "losses", "nn/hooks") or module.startswith(("optim/", "nn/utils/")):
                full = False
            elif module.startswith("nn/") and last in ("forward", "step"):
                full = False
            else:
                continue
            if name not in NOT_HERE and not (last.startswith("__") and last != "__str__"):
                found.append(Target(path, name, node, tree, full))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Edits
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Mutant:
    target: Target
    line: int
    kind: str
    edit: str
    position: tuple[Any, str, int | None] | None  # parent, field, position in it
    new: Any

    @property
    def key(self) -> str:
        return f"{self.target.name}: {self.edit}"

    def compiled(self) -> Any:
        """The code of the edited function."""
        target = self.target
        if self.position is None:
            return _code(target, self.new)
        parent, field, i = self.position
        held = getattr(parent, field)
        old = held if i is None else held[i]
        try:
            if i is None:
                setattr(parent, field, self.new)
            else:
                held[i] = self.new
            return _code(target, target.node)
        finally:
            if i is None:
                setattr(parent, field, old)
            else:
                held[i] = old


def _code(target: Target, node: ast.FunctionDef) -> Any:
    """Compile one function inside its classes, so that `super` works."""
    chain = target.name.split(".")[:-1]
    bare = copy.copy(node)
    bare.decorator_list = []
    body: Any = bare
    for name in reversed(chain):
        body = ast.ClassDef(name, [], [], [body], [])
    tree = ast.Module([ast.parse("from __future__ import annotations").body[0], body], [])
    code = compile(ast.fix_missing_locations(tree), os.path.join(os.getcwd(), target.path), "exec")
    for name in target.name.split("."):
        code = next(c for c in code.co_consts if hasattr(c, "co_name") and c.co_name == name)
    return code


# A call of these methods or functions with something to pass through: dropped, it leaves that.
DROPPED = set(
    "sum mean reshape transpose swapaxes flip expand copy astype exp sqrt log unsqueeze squeeze cumsum sign abs mT T permute "
    "where detach clone ascontiguousarray argsort square rsqrt double deepcopy cast flipud narrow pad isfinite standard_normal"
    " any all choice max min Alias.apply where gather broadcast_to zeros_like".split()
)
COMPARED = {
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
ARITHMETIC = (ast.BinOp, ast.UnaryOp, ast.AugAssign)
COMPUTED = (ast.Call, ast.Slice, ast.Attribute)  # reductions, transposes, operands, slices


def even(parent: Any) -> bool:
    """Is it an absolute value or a square, which do not see a sign?"""
    if isinstance(parent, ast.Call):
        return ast.unparse(parent.func) in ("abs", "np.abs")
    return isinstance(parent, ast.Attribute) and parent.attr in ("abs", "square")


def reshapes(node: Any) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape"


def refuses(node: Any) -> bool:
    """An `if` that only raises."""
    if not isinstance(node, ast.If) or node.orelse:
        return False
    last = node.body[-1]
    raises = isinstance(last, ast.Raise) or (isinstance(last, ast.Expr) and "refuse" in ast.unparse(last))
    return len(node.body) == 1 and raises


def edits(target: Target) -> Iterator[Mutant]:
    seen: Counter[str] = Counter()
    for line, kind, old, new, position, node, statement in _edits(target):
        text = f"{old} → {new}"
        if len(old) < 14 and statement:
            text += f"  in  {statement}"
        most = 112 - len(target.name)
        text = text if len(text) <= most else text[: most - 1] + "…"
        seen[text] += 1
        if seen[text] > 1:
            text += f" ({seen[text]})"
        yield Mutant(target, line, kind, text, position, node)


def _edits(target: Target) -> Iterator[tuple[Any, ...]]:
    gradient = target.name.endswith(("backward", "composed", "_grad")) or target.name in ("_sweep", "vjp_through", "_rows")
    checker = target.path.endswith("calculus.py")
    guards = target.path.endswith(("tensors.py", "gradients.py", "autograd.py", "calculus.py"))

    def visit(node: Any, statement: str) -> Iterator[tuple[Any, ...]]:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "args", "decorator_list", "keywords_", "ctx", "type_comment") and isinstance(
                node, ast.FunctionDef | ast.AnnAssign | ast.Lambda | ast.arg
            ):
                continue
            for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
                    continue
                if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                    continue  # a docstring
                if isinstance(child, ast.UnaryOp) and ast.unparse(child) == "-1" and reshapes(node):
                    continue  # any negative length is the one to be worked out
                where = (node, field, i)
                text = ast.unparse(child).split("\n")[0] if isinstance(child, ast.stmt) else statement
                for kind, new in changes(child, node, field):
                    ast.fix_missing_locations(new)
                    shown = "nothing" if isinstance(new, ast.Pass) else ast.unparse(new).split("\n")[0]
                    line = getattr(child, "lineno", getattr(node, "lineno", 0))
                    old = f"if {ast.unparse(child.test)}" if isinstance(new, ast.If) else ast.unparse(child).split("\n")[0]
                    yield line, kind, old, shown, where, new, text
                if not refuses(child):
                    yield from visit(child, text)

    def changes(node: Any, parent: Any, field: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, ARITHMETIC) or (isinstance(node, ast.Constant) and type(node.value) is float):
            yield from arithmetic(node, parent)
        elif target.full or isinstance(node, COMPUTED) or type(getattr(node, "value", None)) is int:
            yield from other(node, parent, field)

    def arithmetic(node: Any, parent: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, ast.Constant):
            if 0 < abs(node.value) < float("inf"):  # a threshold of the checker is not off by a little: it is loosened
                loosened = target.name.startswith("_Checker.") or target.name == "_pattern"
                yield "factor", ast.Constant(node.value * (1000 if loosened else 1.01))
        elif isinstance(node, ast.UnaryOp):
            whole = isinstance(node.operand, ast.Constant) and type(node.operand.value) is int  # −1: becomes −2 below
            if isinstance(node.op, ast.USub | ast.Invert | ast.Not) and not whole:
                yield "sign", node.operand
        elif isinstance(node, ast.AugAssign):
            other = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}.get(type(node.op))
            if target.full:
                yield "dropped term", ast.Pass()
                if isinstance(node.target, ast.Subscript) and isinstance(node.op, ast.Add):
                    yield "= for +=, += for scatter", ast.Assign([node.target], node.value)
            if other:
                yield "sign", ast.AugAssign(node.target, other(), node.value)
        elif isinstance(node, ast.BinOp):
            a, b = node.left, node.right
            if isinstance(a, ast.Constant | ast.JoinedStr) and isinstance(getattr(a, "value", ""), str):
                return
            if isinstance(node.op, ast.Add):
                yield "sign", ast.BinOp(a, ast.Sub(), b)
                yield "dropped term", a
                yield "dropped term", b
            elif isinstance(node.op, ast.Sub):
                yield "sign", ast.BinOp(a, ast.Add(), b)
                if not even(parent):
                    yield "swapped operands", ast.BinOp(b, ast.Sub(), a)
                yield "dropped term", a
            elif isinstance(node.op, ast.Mult):
                yield "dropped factor", a
                yield "dropped factor", b
            elif isinstance(node.op, ast.Div):
                yield "dropped factor", a
                yield "swapped operands", ast.BinOp(b, ast.Div(), a)
            elif isinstance(node.op, ast.MatMult):
                yield "swapped operands", ast.BinOp(b, ast.MatMult(), a)
            elif isinstance(node.op, ast.Pow):
                yield "dropped factor", a
                yield "axis, index or count off by one", ast.BinOp(a, ast.Pow(), ast.BinOp(b, ast.Add(), ast.Constant(1)))
            elif isinstance(node.op, ast.FloorDiv | ast.Mod):
                yield "axis, index or count off by one", ast.BinOp(node, ast.Add(), ast.Constant(1))
            elif isinstance(node.op, ast.BitAnd):
                yield "condition", ast.BinOp(a, ast.BitOr(), b)
            elif isinstance(node.op, ast.BitOr):
                yield "condition", ast.BinOp(a, ast.BitAnd(), b)

    def other(node: Any, parent: Any, field: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, ast.Constant):
            if type(node.value) is bool and getattr(parent, "arg", "") != "strict":  # of zip: a guard
                yield "condition", ast.Constant(not node.value)
            if type(node.value) is int:
                yield "axis, index or count off by one", ast.Constant(node.value + 1)
        elif isinstance(node, ast.Compare):
            if len(node.ops) == 1:
                for op in COMPARED.get(type(node.ops[0]), []):
                    yield "condition", ast.Compare(node.left, [op()], node.comparators)
        elif isinstance(node, ast.BoolOp):
            yield "condition", ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
            for i in range(len(node.values)):
                rest = node.values[:i] + node.values[i + 1 :]
                yield "condition", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        elif isinstance(node, ast.IfExp):
            if "needs" not in ast.unparse(node.test):  # a gradient that nobody asked for only costs time
                yield "branch", node.body
            yield "branch", node.orelse
        elif isinstance(node, ast.If):
            if refuses(node):
                if guards:
                    yield "guard", ast.Pass()
                return
            for value in (True, False):
                yield (
                    "branch",
                    ast.If(ast.Constant(value), node.body, node.orelse),
                )
        elif isinstance(node, ast.Expr):
            yield "statement", ast.Pass()
        elif isinstance(node, ast.Assign):
            if isinstance(node.targets[0], ast.Attribute | ast.Subscript) and len(node.targets) == 1:
                yield "statement", ast.Pass()
                if isinstance(node.targets[0], ast.Subscript) and not checker:
                    yield "= for +=, += for scatter", ast.AugAssign(node.targets[0], ast.Add(), node.value)
        elif isinstance(node, ast.Slice):
            if node.lower is not None and not isinstance(node.lower, ast.Constant):
                yield "slice off by one", ast.Slice(ast.BinOp(node.lower, ast.Add(), ast.Constant(1)), node.upper, node.step)
            if node.upper is not None and not isinstance(node.upper, ast.Constant):
                yield "slice off by one", ast.Slice(node.lower, ast.BinOp(node.upper, ast.Sub(), ast.Constant(1)), node.step)
        elif isinstance(node, ast.Attribute):
            if node.attr in ("mT", "T"):
                yield "dropped reduction, transpose or copy", node.value
        elif isinstance(node, ast.Return):
            if node.value is not None and gradient:
                yield from returned(node)
        elif isinstance(node, ast.Call):
            yield from called(node)

    def returned(node: ast.Return) -> Iterator[tuple[str, Any]]:
        def scaled(e: ast.expr, factor: float) -> ast.expr:
            if isinstance(e, ast.IfExp):
                return ast.IfExp(e.test, scaled(e.body, factor), e.orelse)
            return ast.BinOp(e, ast.Mult(), ast.Constant(factor))

        if isinstance(node.value, ast.Tuple):
            parts = node.value.elts
            for i, part in enumerate(parts):
                if ast.unparse(part) == "None":
                    continue
                for kind, new in (
                    ("factor", scaled(part, 1.01)),
                    ("sign", scaled(part, -1.0)),
                    ("dropped term", ast.Constant(None)),
                ):
                    yield kind, ast.Return(ast.Tuple(parts[:i] + [new] + parts[i + 1 :], ast.Load()))
            if len(parts) == 2:
                yield "swapped operands", ast.Return(ast.Tuple(parts[::-1], ast.Load()))
        elif not isinstance(node.value, ast.Constant | ast.ListComp) and not ast.unparse(node.value).startswith("tuple("):
            yield "factor", ast.Return(scaled(node.value, 1.01))
            yield "sign", ast.Return(scaled(node.value, -1.0))

    def called(node: ast.Call) -> Iterator[tuple[str, Any]]:
        function = ast.unparse(node.func)
        last = function.rpartition(".")[2]
        library = function.startswith(("np.", "math.")) or "." not in function
        if function == "np.add.at":
            a, i, v = node.args
            spot = ast.Subscript(a, i, ast.Load())
            added = ast.Call(
                ast.Attribute(spot, "__iadd__", ast.Load()), [v], []
            )  # overwrites where repeats should add up, in effect
            yield "= for +=, += for scatter", ast.Call(ast.Attribute(a, "__setitem__", ast.Load()), [i, added], [])
        elif function == "kernels.scatter_add":
            a, i, v = node.args
            added = ast.BinOp(ast.Subscript(a, i, ast.Load()), ast.Add(), v)
            yield "= for +=, += for scatter", ast.Call(ast.Attribute(a, "__setitem__", ast.Load()), [i, added], [])
        elif function == "range":
            end = min(len(node.args) - 1, 1)
            args = list(node.args)
            args[end] = ast.BinOp(args[end], ast.Sub(), ast.Constant(1))
            yield "slice off by one", ast.Call(node.func, args, node.keywords)
        elif function in ("where", "np.where") and len(node.args) == 3:
            c, a, b = node.args
            yield "swapped operands", ast.Call(node.func, [c, b, a], [])
            yield "branch", a
            yield "branch", b
        elif last in DROPPED and isinstance(node.func, ast.Attribute) and not library:
            yield "dropped reduction, transpose or copy", node.func.value
        elif last in DROPPED and library and node.args:
            yield "dropped reduction, transpose or copy", node.args[0]
        elif (last == "apply" or last in ("matmul", "einsum", "_windows", "conv")) and len(node.args) >= 2:
            if not any(isinstance(a, ast.Starred) for a in node.args[:2]):
                yield "swapped operands", ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)

    yield from visit(target.node, "")


def planted(found: list[Target]) -> Iterator[Mutant]:
    """The faults, as mutants."""
    targets = {(t.path, t.name): t for t in found}
    for name, path, function, replacements in FAULTS:
        target = next((t for (p, n), t in targets.items() if n == function and p.endswith(path)), None)
        if target is None:
            raise LookupError(f"fault {name!r}: no function {function} in {path}")
        text = ast.unparse(target.node)
        for old, new in replacements:
            if old not in text:
                raise LookupError(f"fault {name!r}: {function} has no {old!r}")
            text = text.replace(old, new)
        node = ast.parse(text).body[0]
        ast.increment_lineno(node, target.node.lineno - 1)
        yield Mutant(target, target.node.lineno, "planted in a checker", f"planted: {name}", None, node)


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def live(target: Target) -> Any:
    """The function object of a target, in the modules as imported; None where there is none to be reached."""
    module = sys.modules.get(target.path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    if module is None:
        return None
    found: Any = module
    for name in target.name.split("."):
        found = vars(found).get(name) if hasattr(found, "__dict__") else None
        if found is None:
            return None
    for attribute in ("fget", "__func__", "__wrapped__"):
        found = getattr(found, attribute, found)
    code = getattr(found, "__code__", None)
    return found if code is not None and code.co_qualname == target.name else None


def probe(found: list[Target]) -> None:
    """Make every target note that it was entered."""
    builtins.__entered__ = set()  # type: ignore[attr-defined]
    for target in found:
        function = live(target)
        if function is not None:
            node = copy.copy(target.node)
            node.body = [*ast.parse(f"__entered__.add({target.key!r})").body, *node.body]
            function.__code__ = _code(target, node)


class Campaign:
    """A pytest plugin that, instead of running the tests once, runs them for every mutant."""

    def __init__(self, options: argparse.Namespace, found: list[Target], mutants: list[Mutant], digest: str):
        self.options, self.targets, self.mutants, self.digest = options, found, mutants, digest
        self.failed = ""
        self.answer: Any = None  # where a mutant's process writes which test killed it
        self.ranked: dict[str, list[str]] = {}
        self.results: list[tuple[Mutant, str, str, float]] = []  # mutant, outcome, the test that killed it, seconds

    # Hooks

    def pytest_load_initial_conftests(self) -> None:
        import hypothesis

        # A counterexample is enough; nobody reads its smallest form.
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutate", phases=phases)
        hypothesis.settings.load_profile("mutate")

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        """A mutant is killed by the first exception; nobody reads the report."""
        skipped = sys.modules["pytest"].skip.Exception
        if self.answer and call.excinfo and not call.excinfo.errisinstance((skipped, KeyboardInterrupt)):
            if not item.get_closest_marker("xfail"):
                self.answer.write(json.dumps([item.nodeid, 0]))
                self.answer.flush()
                os._exit(0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_runtestloop(self, session: Any) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.table = self.touched()
        gc.freeze()  # what is there by now, the forked processes share
        self.run()
        return True

    # Which test enters what

    def touched(self) -> dict[str, list[Any]]:
        """test -> [processor seconds, the targets it enters]; kept in a file, if asked, until the library changes."""
        path = self.options.map
        known = json.loads(Path(path).read_text()) if path and Path(path).exists() else {}
        self.before = known.get("killers", {})
        table = known.get("tests", {}) if known.get("source") == self.digest else {}
        missing = [name for name in self.items if name not in table]
        if missing:
            say(f"{len(missing)} tests run once, to see which functions each enters")
            jobs = [
                self.fork(lambda part=missing[i :: self.options.jobs]: self.profile(part)) for i in range(self.options.jobs)
            ]
            for pid, pipe in jobs:
                with os.fdopen(pipe) as stream:
                    table.update(json.loads(stream.read() or "{}"))
                os.waitpid(pid, 0)
        table = {name: entry for name, entry in table.items() if name in self.items}
        self.known = {"source": self.digest, "tests": table, "killers": self.before}
        self.keep()
        broken = [name for name, entry in table.items() if entry[0] is None]
        for name in broken:
            say(f"fails without any edit, and is left out: {name}")
        return {name: entry for name, entry in table.items() if entry[0] is not None}

    def keep(self) -> None:
        if self.options.map:
            Path(self.options.map).write_text(json.dumps(self.known))

    def profile(self, names: list[str]) -> dict[str, Any]:
        self.answer = None
        probe(self.targets)
        entered = builtins.__entered__  # type: ignore[attr-defined]
        table = {}
        for name in names:
            entered.clear()
            self.failed = ""
            start = time.process_time()
            self.one(name)
            table[name] = [None if self.failed else round(time.process_time() - start, 4), sorted(entered)]
        return table

    def one(self, name: str) -> None:
        item = self.items[name]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)

    def fork(self, work: Any) -> tuple[int, int]:
        """Run `work` in a process of its own; what it returns comes through the pipe, as JSON."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writer)
            return pid, reader
        try:
            os.close(reader)
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            with os.fdopen(writer, "w") as stream:
                self.answer = stream
                stream.write(json.dumps(work()))
        finally:
            os._exit(0)

    # Mutants

    def order(self, mutant: Mutant, killers: dict[str, list[str]]) -> list[str]:
        """The tests to run: the one that killed it before, those that killed its siblings, then quick and telling ones."""
        key = mutant.target.key
        first = [self.before[mutant.key]] if self.before.get(mutant.key) in self.table else []
        first += [name for name in killers.get(key, [])[:20] if name not in first]
        if key not in self.ranked:
            touching = {name: entry for name, entry in self.table.items() if key in entry[1]}

            def rank(name: str) -> float:
                seconds, entered = touching[name]
                home = {"calculus": "test_gradcheck"}.get(stem := Path(mutant.target.path).stem, f"test_{stem}")
                if home in name:
                    return (seconds + 0.005) * 0.02 * (20 + len(entered))
                telling = 0.3 if "::test_gradient" in name or "::test_jvp" in name or "::test_value" in name else 1.0
                return (seconds + 0.005) * telling * (20 + len(entered))

            self.ranked[key] = sorted(touching, key=rank)
        return first + [name for name in self.ranked[key] if name not in set(first)]

    def attack(self, mutant: Mutant, code: Any, names: list[str], seconds: float) -> list[Any]:
        """[the test that fails, or None; how many were run]"""
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        live(mutant.target).__code__ = code
        start = time.process_time()
        for i, name in enumerate(names):
            signal.setitimer(signal.ITIMER_PROF, max(5.0, 10 * self.table[name][0]))  # a loop without end is noticed too
            self.one(name)
            if self.failed:
                return [self.failed, i + 1]
            if time.process_time() - start > seconds:
                return [None, i + 1]
        return [None, len(names)]

    def run(self) -> None:
        begun = time.monotonic()
        killers: dict[str, list[str]] = {}
        todo: list[tuple[Mutant, frozenset[str], float]] = [(m, frozenset(), FIRST) for m in reversed(self.mutants)]
        later: list[tuple[Mutant, frozenset[str], float]] = []
        running: dict[int, tuple[Any, ...]] = {}
        done = 0
        while todo or later or running:
            if options_over := self.options.minutes and time.monotonic() - begun > 60 * self.options.minutes:
                self.results += [(m, "not decided", "", 0.0) for m, *_ in todo + later]
                todo, later = [], []
            if not todo and not running and not options_over:
                todo, later = later[::-1], []
                say(f"{len(todo)} mutants are left for the second round")
            while todo and len(running) < self.options.jobs:
                mutant, passed, budget = todo.pop()
                try:
                    code = mutant.compiled()
                except SyntaxError:
                    continue
                function = live(mutant.target)
                if function is None or len(function.__code__.co_freevars) != len(code.co_freevars):
                    self.results.append((mutant, "unreachable", "", 0.0))
                    continue
                names = self.order(mutant, killers)
                names = [name for name in names if name not in passed]
                job = self.fork(lambda m=mutant, c=code, n=names, b=budget: self.attack(m, c, n, b))
                running[job[0]] = (mutant, names, passed, budget, job[1], time.monotonic())
            if not running:
                continue
            pid, status = os.wait()
            if pid not in running:
                continue
            mutant, names, passed, budget, pipe, start = running.pop(pid)
            with os.fdopen(pipe) as stream:
                answer = stream.read()
            spent = time.monotonic() - start
            killer, count = json.loads(answer) if answer else ["the clock or a crash", 0]
            if killer:
                mine = killers.setdefault(mutant.target.key, [])
                if answer and killer in mine:
                    mine.remove(killer)
                if mutant.key in EQUIVALENT:
                    say(f"equivalent.txt has a reason for {mutant.key}, but {killer} kills it")
                if answer:
                    mine.insert(0, killer)
                    self.before[mutant.key] = killer
                self.results.append((mutant, "killed", killer, spent))
            elif count < len(names) and budget == FIRST and mutant.key not in EQUIVALENT:
                say(f"survived {count} tests, left for the second round: {mutant.target.path}:{mutant.line}  {mutant.key}")
                later.append((mutant, passed | set(names[:count]), 10 * FIRST))
                continue
            else:
                outcome = "survived" if mutant.key not in EQUIVALENT else "equivalent"
                if outcome == "survived":
                    say(f"survived {len(passed) + count} tests: {mutant.target.path}:{mutant.line}  {mutant.key}")
                self.results.append((mutant, outcome, "", spent))
            done += 1
            if done % 50 == 0:
                say(f"{done} of {len(self.mutants)} after {time.monotonic() - begun:.0f} s")
                self.write(time.monotonic() - begun)
        self.write(time.monotonic() - begun)

    def write(self, seconds: float) -> None:
        self.keep()
        text = summary(self.results, len(self.mutants), len(self.table), seconds, self.options.jobs)
        if self.options.out:
            Path(self.options.out).write_text(text)
        self.text = text


def summary(results: list[tuple[Mutant, str, str, float]], planned: int, tests: int, seconds: float, jobs: int) -> str:
    counts = Counter(outcome for _, outcome, _, _ in results)
    real = counts["killed"] + counts["survived"]
    lines = [
        f"{len(results)} of {planned} mutants against {tests} tests in {seconds / 60:.1f} minutes, {jobs} processes",
        ", ".join(f"{counts[o]} {o}" for o in ("killed", "equivalent", "survived", "unreachable", "not decided")),
        f"{100 * counts['killed'] / max(real, 1):.2f} % of those not equivalent are killed; why some are: equivalent.txt",
    ]
    for title, of in (("file", lambda m: m.target.path), ("edit", lambda m: m.kind)):
        lines += ["", f"{title:40}{'mutants':>9}{'killed':>9}{'equivalent':>12}{'survived':>10}"]
        for name in sorted({of(m) for m, *_ in results}):
            c = Counter(outcome for m, outcome, _, _ in results if of(m) == name)
            lines.append(f"{name:40}{sum(c.values()):9}{c['killed']:9}{c['equivalent']:12}{c['survived']:10}")
    for outcome in ("survived", "not decided", "unreachable"):
        some = sorted((m for m, o, _, _ in results if o == outcome), key=lambda m: (m.target.path, m.line))
        lines += ["", outcome, *(f"  {m.target.path}:{m.line}  {m.key}" for m in some)] if some else []
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def copied() -> Path:
    """A copy of the tree as it is now, which nobody else edits."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folder = Path(tempfile.mkdtemp(prefix="mutate-"))
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="only functions of these files")
    parser.add_argument("--only", default="", help="only mutants in whose function or edit this stands")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the edits and stop")
    parser.add_argument("--sample", type=int, default=1, help="every n-th mutant, but all of those in the gradients themselves")
    parser.add_argument("--again", help="only mutants that stand in this file: the result of an earlier run")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many")
    parser.add_argument("--out", help="write the result here")
    parser.add_argument("--map", help="keep here which test enters what and kills which mutant: the next run tries that first")
    options = parser.parse_args(args)
    for name in ("out", "map"):
        if getattr(options, name):
            setattr(options, name, str(Path(getattr(options, name)).resolve()))
    folder = copied()
    try:
        found = targets(folder)
        mutants = [m for t in found for m in edits(t)] + list(planted(found))
        for key in sorted(set(EQUIVALENT) - {m.key for m in mutants}):
            say(f"equivalent.txt has a reason for an edit that is not made (any more): {key}")
        mutants = [m for m in mutants if not options.files or any(m.target.path.endswith(f) for f in options.files)]
        mutants = [m for m in mutants if options.only in m.key or options.only in m.target.key]
        if options.again:
            listed = Path(options.again).read_text()
            mutants = [m for m in mutants if m.key in listed]
        rest = [id(m) for m in mutants if not m.target.core][:: options.sample]
        mutants = [m for m in mutants if m.target.core or id(m) in set(rest)]
        if options.list:
            for m in mutants:
                print(f"{m.target.path}:{m.line}  {m.key}")
            print(f"{len(mutants)} mutants of {len({m.target.key for m in mutants})} functions")
            return 0
        return campaign(options, folder, found, mutants)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def campaign(options: argparse.Namespace, folder: Path, found: list[Target], mutants: list[Mutant]) -> int:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["SCRATCHGEN_KERNELS"] = "reference"  # what is edited has to be what runs
    os.chdir(folder)
    sys.path[:] = [str(folder), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    sys.modules.pop("tests", None)
    sys.dont_write_bytecode = True
    import pytest

    files = [
        str(p)
        for p in sorted((folder / "tests").glob("test_*.py"))
        if p.stem.startswith(tuple(f"test_{name}" for name in TESTS))
    ]
    source = [p.read_bytes() for r in ("kernels", "scratchgen") for p in sorted((folder / r).rglob("*.py"))]
    plugin = Campaign(options, found, mutants, hashlib.sha256(b"".join(source)).hexdigest())
    quiet = ["-q", "--no-header", "--no-summary", "--tb=no", "-p", "no:cacheprovider", "--capture=no"]
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main([*quiet, "--rootdir", str(folder), *files], plugins=[plugin])
    text = getattr(plugin, "text", "")
    print(text)
    return 0 if text and not any(outcome == "survived" for _, outcome, _, _ in plugin.results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
