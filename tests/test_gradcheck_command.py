"""`scratchgen gradcheck`: rows of the catalog and functions of the user's own file, one line each, faults in a sentence."""

import pytest

from scratchgen import __main__ as cli
from scratchgen import catalog


def test_gradcheck_command_prints_a_line_per_row(capsys):
    assert catalog.main(["softmax", "Linear", "F.elu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["softmax", "nn.Linear", "elu", "3"]
    assert all(line.endswith("ok") for line in lines[:3])
    assert len({line.index("comparisons") for line in lines[:3]}) == 1


@pytest.mark.parametrize(
    "name, words", [("sofmax", "softmax"), ("nn.Linaer", "nn.Linear"), ("argmax", "whole numbers"), ("no.py:f", "no file")]
)
def test_gradcheck_command_answers_an_unknown_name_in_a_sentence(capsys, name, words):
    assert catalog.main([name]) == 2
    out, err = capsys.readouterr()
    assert not out and words in err and err.count("\n") == 1


USER_FILE = '''
import numpy as np
from scratchgen import nn, ops
from scratchgen.autograd import Function

def swish(x):
    return x * ops.sigmoid(x)

swish.inputs = lambda rng: rng.standard_normal((2, 3))

class Cube(Function):
    """y = x³, with the gradient of y = 1.5 x²"""
    def forward(self, x):
        return x**3
    def backward(self, dy):
        (x,) = self.inputs
        return dy * x * 3

def Cube_inputs(rng):
    return (rng.standard_normal(3),)

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
    def forward(self, x, n):
        return self.inner(x) * n

twice = Twice()
Twice_inputs = twice_inputs = (np.ones((1, 2)), np.array([2]))

def lonely(x):
    return x
'''


def test_gradcheck_command_checks_the_users_own_file(capsys, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(USER_FILE)
    assert catalog.main([f"{path}:swish", f"{path}:Twice", f"{path}:twice"]) == 0
    assert catalog.main([f"{path}:Cube"]) == 1
    out = capsys.readouterr().out
    assert "Cube: WRONG" in out and "by the chain rule" in out
    assert catalog.main([f"{path}:lonely"]) == 2
    assert "lonely_inputs(rng)" in capsys.readouterr().err
    assert catalog.main([f"{path}:swich"]) == 2
    assert "did you mean swish" in capsys.readouterr().err


BROKEN_FILE = """
import numpy as np
from scratchgen import nn
from scratchgen.autograd import Function

number = 5

def none(x):
    return None

def raises(x):
    return {}["key"]

def product(x):
    return x @ x

none.inputs = raises.inputs = product.inputs = np.ones((2, 3))

def drawn(x):
    return x

def drawn_inputs(rng):
    return rng.normals(3)

def forgotten(x):
    return x

def forgotten_inputs(rng):
    rng.standard_normal(3)

class Needs(nn.Module):
    def __init__(self, width):
        super().__init__()

Needs_inputs = np.ones(3)

class Unfit(Function):
    def forward(self, x):
        return x * 2
    def backward(self, dy):
        return dy.sum()

Unfit_inputs = np.ones(3)
"""


@pytest.mark.parametrize(
    "name, words",
    [
        (":number", "'number' in {path} is of type int, not a function, op or Module."),
        (":none", "TypeError: gradcheck of none: expected f to return a floating tensor"),
        (":raises", "raises: KeyError: 'key' (line 12 of {path})"),
        (":product", "matmul: expected inner lengths that agree, got shapes (2, 3) and (2, 3) (line 15 of {path})"),
        (":drawn", "AttributeError: 'numpy.random._generator.Generator' object has no attribute 'normals' (line 23 of {path})"),
        (":forgotten", "forgotten_inputs(rng) returned None: expected an array, or a tuple of arrays."),
        (":Needs", "TypeError: Needs.__init__() missing 1 required positional argument: 'width'"),
        ("", "expected {path}:NAME, got no name; did you mean none, raises, product, drawn, forgotten, Needs?"),
        (":", "expected {path}:NAME, got no name; did you mean"),
    ],
)
def test_gradcheck_command_says_in_a_sentence_what_it_cannot_check(capsys, tmp_path, name, words):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN_FILE)
    assert catalog.main([f"{path}{name}"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and words.format(path=path) in err and err.startswith("gradcheck: ")


@pytest.mark.parametrize(
    "text, words",
    [
        ("x = (", "SyntaxError: '(' was never closed"),
        ("\nimport nosuch", "No module named 'nosuch' (line 2 of "),
        ("1 / 0", "line 1"),
    ],
)
def test_gradcheck_command_and_a_file_that_does_not_run(capsys, tmp_path, text, words):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert catalog.main([f"{path}:f"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and words in err


def test_gradcheck_command_takes_a_gradient_of_another_shape_for_wrong(capsys, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN_FILE)
    assert catalog.main([f"{path}:Unfit"]) == 1
    out = capsys.readouterr().out
    assert "Unfit: WRONG, Unfit.backward: a gradient of shape () does not fit an input of shape (3,)" in out


def test_gradcheck_command_draws_the_curve_and_stops_at_the_first_order(capsys, tmp_path):
    path, picture = tmp_path / "own.py", tmp_path / "curve.png"
    path.write_text(USER_FILE)
    assert cli.main(["gradcheck", f"{path}:swish", "--order", "1", "--curve", str(picture)]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert f"{6 + 1 + 1} comparisons" in capsys.readouterr().out
    for names in ([], ["softmax"], [f"{path}:swish", f"{path}:Twice"], [f"{path}:swish", "softmax"]):
        assert catalog.main(names, curve=str(picture)) == 2
        assert "--curve draws one function" in capsys.readouterr().err
