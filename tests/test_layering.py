"""Data flows one way: a module imports only from layers above its own, found by reading its imports.

LAYERS lists them, those that know least first. Layers of one row do not know each other.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"kernels"},
    {"scratchgen.replay", "scratchgen.startup"},
    {"scratchgen._kernels"},
    {"scratchgen.random", "scratchgen.device", "scratchgen.hooks", "scratchgen.switch"},
    {"scratchgen.tensors", "scratchgen.anomaly"},
    {"scratchgen.gradients", "scratchgen.grad_mode"},
    {"scratchgen.autograd"},
    {"scratchgen.ops", "scratchgen.serialization"},
    {"scratchgen.losses"},
    {"scratchgen.functional"},
    {"scratchgen.calculus", "scratchgen.graph"},
    {"scratchgen.nn", "scratchgen.optim"},
    {"scratchgen.data", "scratchgen.text", "scratchgen.metrics"},
    {"scratchgen.models"},
    {"scratchgen"},  # what `import scratchgen as sg` offers
    {"scratchgen.training", "scratchgen.catalog"},
    {"scratchgen.__main__"},
]
ROW = {layer: i for i, row in enumerate(LAYERS) for layer in row}

# Libraries beside NumPy and Python's own, and the layers that may use them: inside a function, when first wanted.
LIBRARIES = {
    "numba": {"kernels", "scratchgen.device"},
    "llvmlite": {"kernels"},
    "cupy": {"kernels", "scratchgen.device"},
    "threadpoolctl": {"kernels", "scratchgen.__main__"},
    "scipy": {"kernels", "scratchgen.nn", "scratchgen.metrics"},
    "matplotlib": {"scratchgen.calculus", "scratchgen.graph", "scratchgen.training"},
    "PIL": {"scratchgen.data", "scratchgen.training"},
    "sklearn": {"scratchgen.data"},
    "pooch": {"scratchgen.data"},
    "pydoc_data": {"scratchgen.data"},
    "safetensors": {"scratchgen.serialization", "scratchgen.models", "scratchgen.training"},
    "tqdm": {"scratchgen.training"},
    "argparse": {"scratchgen.__main__"},
}
COMPILED = ("kernels.cpu", "kernels.cuda")  # these are Numba, and are themselves imported when first wanted


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for top in ("scratchgen", "kernels") for path in sorted((ROOT / top).rglob("*.py"))}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def layer_of(module):
    """The longest name in the table that the module's name begins with."""
    return max(
        (layer for layer in ROW if module == layer or (module.startswith(layer + ".") and layer != "scratchgen")),
        key=len,
        default=None,
    )


def imports(source, module):
    """(what is imported, whether at once) for every import statement; `from package import module` counts as the module."""

    def visit(node, late):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, not late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                here = (module if module in PACKAGES else module.rpartition(".")[0]).split(".")
                base = (
                    ".".join([*here[: len(here) - child.level + 1], *filter(None, [child.module])])
                    if child.level
                    else child.module
                )
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    yield (full if full in MODULES else base), not late
            else:
                yield from visit(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from visit(ast.parse(source), False)


def violations(module, source):
    """What the module imports and must not."""
    layer = layer_of(module)
    for found, at_once in imports(source, module):
        top = found.partition(".")[0]
        if top in ("scratchgen", "kernels"):
            other = layer_of(found)
            if other != layer and ROW[other] >= ROW[layer]:
                yield f"{module} imports {found}, which is not above it"
        elif top in LIBRARIES:
            if layer not in LIBRARIES[top]:
                yield f"{module} imports {top}, which only {', '.join(sorted(LIBRARIES[top]))} may"
            elif at_once and top not in sys.stdlib_module_names and not module.startswith(COMPILED):
                yield f"{module} imports {top} at once, not when it is first wanted"
        elif top != "numpy" and top not in sys.stdlib_module_names:
            yield f"{module} imports {top}, which is not in the table of libraries"


@pytest.mark.parametrize("module", list(MODULES))
def test_data_flows_one_way(module):
    assert layer_of(module), f"{module} stands in no layer of the table"
    assert not list(violations(module, MODULES[module].read_text()))


def test_every_layer_of_the_table_is_there():
    built = {layer_of(module) for module in MODULES}
    planned = {"scratchgen.graph"}
    assert set(ROW) - built <= planned


@pytest.mark.parametrize(
    "module, source, word",
    [
        ("scratchgen.tensors", "from scratchgen.ops import add", "scratchgen.ops"),
        ("scratchgen.tensors", "def f():\n    from scratchgen import ops", "scratchgen.ops"),
        ("scratchgen.tensors", "from .ops import add", "scratchgen.ops"),
        ("scratchgen.ops.reduce", "from .. import nn", "scratchgen.nn"),
        ("scratchgen.functional", "import scratchgen.nn.layers", "scratchgen.nn.layers"),
        ("scratchgen.functional", "import scratchgen", "scratchgen"),
        ("scratchgen.nn.layers", "from scratchgen import optim", "scratchgen.optim"),
        ("scratchgen.models.gan", "from scratchgen.training import loop", "scratchgen.training.loop"),
        ("scratchgen.models.gan", "from tqdm import tqdm", "tqdm"),
        ("scratchgen.training.loop", "from tqdm import tqdm", "at once"),
        ("scratchgen.text", "import torch", "torch"),
        ("kernels.reference", "import scratchgen.tensors", "scratchgen.tensors"),
        ("kernels.reference", "from numba import njit", "at once"),
    ],
)
def test_an_import_against_the_stream_is_found(module, source, word):
    found = list(violations(module, source))
    assert len(found) == 1 and word in found[0]


@pytest.mark.parametrize(
    "module, source",
    [
        ("scratchgen.ops.fused", "from scratchgen.ops.reduce import mean\nimport kernels\nimport numpy as np"),
        ("scratchgen.calculus", "def f():\n    import matplotlib.figure"),
        ("kernels.cpu.matmul", "from numba import njit"),
        ("scratchgen.__main__", "import argparse"),
    ],
)
def test_an_import_with_the_stream_is_not(module, source):
    assert not list(violations(module, source))


# ---------------------------------------------------------------------------------------------------------------------
# What a reader can take in
# ---------------------------------------------------------------------------------------------------------------------

LINES = {"kernels": 650, "scratchgen": 700, "tests": 1000}
PARAMETERS = 12
AS_PYTORCH_HAS_THEM = {"OneCycleLR.__init__", "_ConvTranspose.__init__"}


def crowded(tree):
    """The functions, methods by their class, that take more than twelve parameters, `self` aside."""
    owner = {item: node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if arg]
            if len([name for name in names if name != "self"]) > PARAMETERS:
                yield f"{owner[node]}.{node.name}" if node in owner else node.name


@pytest.mark.parametrize("folder", LINES)
def test_files_and_signatures_are_short(folder):
    """A file has one subject: 650 lines of kernels, 700 of the library, 1,000 of tests; a function at most 12 parameters."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") <= LINES[folder], f"{path.relative_to(ROOT)} is longer than {LINES[folder]} lines"
        if folder != "tests":
            many = set(crowded(ast.parse(source))) - AS_PYTORCH_HAS_THEM
            assert not many, f"{path.relative_to(ROOT)}: more than {PARAMETERS} parameters: {', '.join(many)}"


def test_a_crowded_signature_is_found():
    many = ", ".join(f"p{i}" for i in range(11))
    assert list(crowded(ast.parse(f"class A:\n def f(self, {many}, *a, k): pass"))) == ["A.f"]
    assert not list(crowded(ast.parse(f"class A:\n def f(self, {many}, *a): pass")))
