"""`sg.save` and `sg.load`: what goes in comes out, other programs read it, and nothing is ever run or half written."""

import io
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import scratchgen as sg
from scratchgen import nn, optim
from scratchgen.nn import Parameter
from scratchgen.serialization import HELD


def same(a, b):
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, sg.Tensor):
        return type(b) is sg.Tensor and same(a.data, b.data)
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return type(a) is type(b) and (a == b or a != a and b != b)


def test_a_state_dict_comes_back_and_other_programs_read_it(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    path = tmp_path / "model.safetensors"
    sg.save(model.state_dict(), path)
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    other.load_state_dict(sg.load(path))
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    arrays = load_file(path)
    assert set(arrays) == set(model.state_dict()) and np.array_equal(arrays["0.weight"], model[0].weight.data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]


def test_files_of_other_programs_are_read(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(True), "c": np.zeros((0, 2), np.int16)}
    save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    found = sg.load(str(tmp_path / "theirs.safetensors"))
    assert set(found) == set(arrays) and all(same(sg.tensor(arrays[key]), found[key]) for key in arrays)
    found["a"].zero_()  # nobody else's memory


def test_what_is_nested_comes_back(tmp_path):
    p = Parameter([1.0, 2.0])
    optimizer = optim.Adam([{"params": [p], "betas": (0.5, 0.9)}])
    p.grad = sg.tensor([1.0, 2.0])
    optimizer.step()
    tree = {
        "model": {"p": p.detach()}, "optimizer": optimizer.state_dict(), "step": 3, "lr": 0.1, "name": "κ \udc80", "no": None,
        "flags": [True, False], "empty": {}, "pair": (1, [2, (3,)]), "scores": [math.inf, -math.inf, math.nan],
        7: sg.tensor([1.0]), "7": sg.tensor([2.0]), "7'": sg.tensor([3.0]), "a/b": np.array([1.0]), "a": {"b": np.array([2.0])},
        "__metadata__": np.array([3.0]), "": np.array(4), "\udc80": np.array(5),
    }  # fmt: skip
    sg.save(tree, tmp_path / "run")
    found = sg.load(tmp_path / "run")
    assert same(tree, found)
    other = optim.Adam([{"params": [Parameter([0.0, 0.0])]}])
    other.load_state_dict(found["optimizer"])
    assert other.param_groups[0]["betas"] == (0.5, 0.9)
    sg.save(tree, tmp_path / "again")
    raw = (tmp_path / "run").read_bytes()
    assert (tmp_path / "again").read_bytes() == raw and b"Infinity" not in raw and b"NaN" not in raw


def test_a_file_may_begin_as_one_of_another_kind(tmp_path):
    """The first bytes are the length of the header: 640 is how a pickle begins."""
    for n in range(600):
        sg.save({"a" * n: sg.tensor([1.0])}, tmp_path / "x")
        if (tmp_path / "x").read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header of 640 bytes")
    assert sg.load(tmp_path / "x") and len(sg.load(tmp_path / "x")) == 1


@pytest.mark.parametrize("dtype", sorted(HELD))
def test_every_dtype_and_layout(dtype, tmp_path):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    things = [array, array.T, array[:, ::-1, ::2], array[:0], array[0, 0, 1], array.astype(array.dtype.newbyteorder(">"))]
    for thing in things:
        sg.save(np.asarray(thing), tmp_path / "x")
        found = sg.load(tmp_path / "x")
        assert found.dtype == np.dtype(dtype) and found.shape == thing.shape
        assert (found == thing).all() and found.flags.writeable
    sg.save(sg.tensor(array), tmp_path / "x")
    assert same(sg.load(tmp_path / "x"), sg.tensor(array))


def test_parameters_come_back_as_tensors_without_a_gradient(tmp_path):
    x = sg.tensor([1.0, 2.0], requires_grad=True)
    sg.save([x, x * 2, Parameter([3.0])], tmp_path / "x")
    found = sg.load(tmp_path / "x")
    assert [t.tolist() for t in found] == [[1, 2], [2, 4], [3]] and not any(t.requires_grad for t in found)


def test_open_files():
    file = io.BytesIO()
    sg.save({"a": sg.tensor([1.0])}, file)
    file.seek(0)
    assert sg.load(file)["a"].tolist() == [1.0]
    with pytest.raises(ValueError, match="load: the file is no safetensors file"):
        sg.load(io.BytesIO(b""))


def held():
    loop = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(("thing", "said"), [
    (nn.Linear(1, 1), r"save: the object is a Linear; expected tensors, .*; save its state_dict\(\)"),
    ({"a": {"f": print}}, "save: a/f is a builtin_function_or_method; expected"),
    ({"a": {1, 2}}, "a is a set"),
    ({"x": np.float32(1)}, "x is a float32"),
    ({(1, 2): 3}, r"the dict has the key \(1, 2\); expected texts or whole numbers"),
    ({"d": {True: 3}}, "d has the key True"),
    (np.zeros(1, np.longdouble), "the array is of float128; expected one of"),
    ({"c": np.zeros(1, complex)}, "c is of complex128"),
    ([np.array([None])], "0 is of object"),
    (held(), "expected dicts and lists that do not hold themselves"),
])  # fmt: skip
def test_what_cannot_be_held_is_refused_before_anything_is_written(thing, said, tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(TypeError, match=said) as caught:
        sg.save(thing, tmp_path / "x")
    assert "\n" not in str(caught.value) and (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    sg.save([1], path)
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        sg.save([2], path)
    assert sg.load(path) == [1] and len(list(tmp_path.iterdir())) == 1


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("bomb"),)


@pytest.mark.parametrize("damage", [
    lambda raw: b"",
    lambda raw: raw[:5],
    lambda raw: raw[:-1],
    lambda raw: raw[:30],
    lambda raw: b"\xff" * 8 + raw[8:],
    lambda raw: raw[:8] + b"[" + raw[9:],
    lambda raw: raw.replace(b'\\"tensor\\": \\"a\\"', b'\\"tensor\\": \\"b\\"'),
    lambda raw: raw.replace(b"state", b"stage"),
    lambda raw: raw.replace(b'"dtype":"F32"', b'"dtype":"I64"'),
    lambda raw: b"text\n" * 99,
    lambda raw: pickle.dumps(Bomb()),
    lambda raw: pickle.dumps(Bomb(), protocol=0),
    lambda raw: b"PK\x03\x04" + raw,
])  # fmt: skip
def test_what_is_no_such_file_or_damaged_is_one_sentence(damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sg.save({"a": sg.tensor([1.0, 2.0])}, "x")
    raw = Path("x").read_bytes()
    assert damage(raw) != raw
    Path("x").write_bytes(damage(raw))
    with pytest.raises(ValueError, match="load: x is no safetensors file") as caught:
        sg.load("x")
    assert "\n" not in str(caught.value) and not Path("bomb").exists()


def test_a_dtype_that_numpy_has_not_is_named(tmp_path):
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ValueError, match="holds 'w' as BF16, which NumPy has not; convert it to F32 first"):
        sg.load(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="nothing"):
        sg.load(tmp_path / "nothing")
