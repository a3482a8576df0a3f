"""Modules: what belongs to them and under which name, their state (under PyTorch's names), modes, conversions, containers."""

import copy

import numpy as np
import pytest

from scratchgen import nn
from scratchgen.grad_mode import no_grad
from scratchgen.nn.module import Module, Parameter
from scratchgen.tensors import Tensor, tensor


def rng(seed=0):
    return np.random.default_rng(seed)


def close(a, b, tolerance=1e-12):
    a, b = (x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (a, b))
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def copied(module):
    return {name: t.clone() for name, t in module.state_dict().items()}


# ---------------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------------


class Pair(Module):
    """Two layers that share a weight, a buffer of each kind, and a parameter that is None."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.scale = Parameter(np.ones(3, np.float32))
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_parameter("nothing", None)
        self.register_buffer("count", tensor(np.array(2, np.int64)))
        self.register_buffer("cache", tensor(np.zeros(3, np.float32)), persistent=False)

    def forward(self, x):
        return self.second(self.first(x) * self.scale)


def test_names_and_order():
    m = Pair()
    assert [n for n, _ in m.named_parameters()] == ["scale", "first.weight", "first.bias", "second.bias"]
    assert [n for n, _ in m.named_parameters(remove_duplicate=False)][-2:] == ["second.weight", "second.bias"]
    assert [n for n, _ in m.named_parameters(prefix="net", recurse=False)] == ["net.scale"]
    assert [n for n, _ in m.named_buffers()] == ["count", "cache"]
    assert list(m.state_dict()) == ["scale", "count", "first.weight", "first.bias", "second.weight", "second.bias"]
    assert [n for n, _ in m.named_modules()] == ["", "first", "second"] and [n for n, _ in m.named_children()] == [
        "first",
        "second",
    ]
    assert m.num_parameters() == 3 + 9 + 3 + 3 and len(list(m.parameters())) == 4 and len(list(m.buffers())) == 2
    assert m.get_submodule("") is m and nn.Sequential(m).get_submodule("0.second") is m.second
    shared = nn.Sequential(m, m)
    assert [n for n, _ in shared.named_modules()] == ["", "0", "0.first", "0.second"] and len(list(shared.children())) == 1
    assert [n for n, _ in shared.named_modules(remove_duplicate=False)][-3:] == ["1", "1.first", "1.second"]
    with pytest.raises(AttributeError, match="no module 'first.other'"):
        m.get_submodule("first.other")


def test_the_base_class_needs_no_setup():
    class Bare(Module):
        def __init__(self):
            self.w = Parameter([1.0, 2.0])

    m = Bare()
    assert m.training and list(m.state_dict()) == ["w"] and m.w.dtype == np.float32 and m.w.requires_grad
    with pytest.raises(NotImplementedError, match="Bare.forward is missing"):
        m(1)
    with pytest.raises(TypeError, match="floating"):
        Parameter(np.arange(3))
    assert not Parameter(np.arange(3), requires_grad=False).requires_grad


def test_a_slip_of_assignment_is_refused():
    m = Pair()
    with pytest.raises(TypeError, match="Pair.scale: expected a Parameter or None, got Tensor"):
        m.scale = m.scale * 2
    with pytest.raises(TypeError, match="Pair.first: expected a Module or None, got function"):
        m.first = lambda x: x
    with pytest.raises(TypeError, match="Pair.count: expected a tensor, as it is a buffer, got int"):
        m.count = 3
    m.scale = None
    assert "scale" not in m.state_dict()
    del m.first
    m.first = 3
    assert "first" not in dict(m.named_children())
    with pytest.raises(ValueError, match="without dots"):
        m.add_module("a.b", nn.Identity())
    with pytest.raises(ValueError, match="'forward' is taken"):
        m.add_module("forward", nn.Identity())
    for method, what in (
        (m.add_module, "a Module"),
        (m.register_parameter, "a Parameter"),
        (m.register_buffer, "a tensor"),
    ):
        with pytest.raises(TypeError, match=f"expected {what}"):
            method("x", 3)


def test_state_dict_is_a_view_and_its_clones_load_back():
    m = Pair()
    state = copied(m)
    state["scale"][:] = 7
    assert (m.scale.data == 1).all() and state["first.weight"].dtype == np.float32
    other = Pair().double()
    result = other.load_state_dict(state)
    assert result == ([], []) and result.missing_keys == []
    assert (other.scale.data == 7).all() and other.scale.dtype == np.float64 and other.count.dtype == np.int64
    close(other.first.weight, m.first.weight.data.astype(np.float64), 0)
    assert other.second.weight is other.first.weight
    assert list(m.first.state_dict(prefix="net.")) == ["net.weight", "net.bias"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("scale"), "got missing keys scale$"),
        (lambda s: s.update(extra=np.zeros(1)), "got unexpected keys extra$"),
        (
            lambda s: s.update(scale=np.zeros((3, 1))),
            r"got wrong shapes or dtypes scale \(expected \(3,\), got \(3, 1\)\)$",
        ),
        (lambda s: s.update(count=np.array(0.5)), r"count \(expected int64, got float64\)"),
        (lambda s: [s.pop("scale"), s.update(a=0, b=0)], "missing keys scale; unexpected keys a, b"),
    ],
)
def test_load_refuses_and_changes_nothing(change, said):
    m = Pair()
    before = copied(m)
    state = {name: array + 1 for name, array in before.items()}
    change(state)
    with pytest.raises(ValueError, match=f"load_state_dict: expected the state of this Pair, .*{said}"):
        m.load_state_dict(state)
    for name, array in m.state_dict().items():
        assert np.array_equal(array, before[name])


def test_what_is_written_into_a_state_dict_is_written_into_the_module():
    """As in PyTorch: an average of weights that is kept in a second module is updated so."""
    m, average = Pair(), Pair()
    loss = (m.scale * m.scale).sum()
    for name, value in average.state_dict().items():
        assert type(value) is Tensor and not value.requires_grad and value.shape == m.state_dict()[name].shape
        value.copy_(m.state_dict()[name] * 3)
    assert (average.scale.data == 3).all() and (m.scale.data == 1).all() and average.scale.requires_grad
    m.state_dict()["scale"].zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
    m.register_buffer("kept", m.state_dict()["scale"])  # what one gives, the other takes
    assert m.kept.data.tolist() == [0, 0, 0]


def test_load_not_strict():
    m = Pair()
    result = m.load_state_dict({"scale": np.zeros(3), "other": np.zeros(1)}, strict=False)
    assert result.unexpected_keys == ["other"] and len(result.missing_keys) == 5 and (m.scale.data == 0).all()
    with pytest.raises(ValueError, match="wrong shapes"):
        m.load_state_dict({"scale": np.zeros(4)}, strict=False)
    with pytest.raises(TypeError, match="expected a mapping"):
        m.load_state_dict([1])


def test_modes():
    m = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(3)))
    assert m.eval() is m and not any(x.training for x in m.modules())
    assert m.train() is m and all(x.training for x in m.modules())
    with pytest.raises(TypeError, match="True or False"):
        m.train("no")
    m.requires_grad_(False)
    assert not any(p.requires_grad for p in m.parameters())
    seen = []
    m.apply(lambda x: seen.append(type(x).__name__))
    assert seen == ["Dropout", "BatchNorm1d", "Sequential", "Sequential"]


def test_zero_grad():
    m = nn.Linear(2, 1)
    m(tensor(np.ones((3, 2), np.float32))).sum().backward()
    close(m.weight.grad, np.full((1, 2), 3, np.float32))
    m.zero_grad(set_to_none=False)
    assert m.weight.grad.data.tolist() == [[0, 0]]
    m.zero_grad()
    assert m.weight.grad is None and m.bias.grad is None


def test_conversion_keeps_identity_and_integers():
    m = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    weight = m[0].weight
    x = np.ones((2, 3))
    loss = m(tensor(x.astype(np.float32))).sum()
    m(tensor(x.astype(np.float32))).square().sum().backward()
    grad = weight.grad.data
    assert m.double() is m and m[0].weight is weight and weight.dtype == np.float64 and weight.requires_grad
    assert weight.grad.dtype == np.float64 and np.array_equal(weight.grad.data, grad)
    assert m[1].running_mean.dtype == np.float64 and m[1].num_batches_tracked.dtype == np.int64
    with pytest.raises(RuntimeError, match="changed in place"):  # a graph of the old weights
        loss.backward()
    m.zero_grad()
    m(tensor(x)).square().sum().backward()
    assert weight.grad.dtype == np.float64
    assert m.float()[0].bias.dtype == np.float32 and m.to("cpu") is m and m.to(np.float64)[0].bias.dtype == np.float64
    with pytest.raises(ValueError, match="'cpu' or 'cuda', got 'tpu'"):
        m.to(device="tpu")
    with pytest.raises(TypeError, match="floating dtype"):
        m.to(np.int64)


def test_deepcopy_is_independent():
    m = Pair()
    twin = copy.deepcopy(m)
    assert twin.second.weight is twin.first.weight and twin.first.weight is not m.first.weight
    twin(tensor(np.ones((1, 3), np.float32))).sum().backward()
    assert m.first.weight.grad is None and twin.first.weight.grad is not None and type(twin.scale) is Parameter
    with no_grad():
        twin.scale.zero_()
    assert (m.scale.data == 1).all() and not twin.cache.data.flags.writeable


def test_containers():
    a, b, c = nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)
    s = nn.Sequential(a, b, c)
    x = tensor(rng().normal(size=(4, 2)).astype(np.float32))
    close(s(x), c(b(a(x))), 0)
    assert len(s) == 3 and s[0] is a and s[-1] is c and list(s[:2]) == [a, b] and isinstance(s[:2], nn.Sequential)
    s[1] = nn.ReLU()
    assert list(s.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    del s[0]
    assert list(s.state_dict()) == ["1.weight", "1.bias"]
    s.insert(0, a).append(b).extend([c])
    assert [type(m).__name__ for m in s] == ["Linear", "ReLU", "Linear", "Tanh", "Linear"]
    named = nn.Sequential({"in": a, "out": c})
    assert list(named.state_dict()) == ["in.weight", "in.bias", "out.weight", "out.bias"] and named[1] is c
    for wrong, error in ((5, IndexError), ("in", TypeError)):
        with pytest.raises(error):
            named[wrong]
    with pytest.raises(TypeError, match="Sequential: expected modules, got function"):
        nn.Sequential(lambda x: x)

    row = nn.ModuleList([a]).append(c)
    assert list(row) == [a, c] and list(row.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert isinstance(row[1:], nn.ModuleList) and row[1:][0] is c

    d = nn.ModuleDict({"x": a})
    d["y"] = c
    assert list(d) == ["x", "y"] == d.keys() and "x" in d and len(d) == 2 and d.values() == [a, c] and d.items()[1] == ("y", c)
    assert list(d.state_dict()) == ["x.weight", "x.bias", "y.weight", "y.bias"]
    assert d.pop("x") is a and "x" not in d
    with pytest.raises(KeyError):
        d["x"]
    with pytest.raises(ValueError, match="'keys' is taken"):
        d["keys"] = a


def test_repr():
    m = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Sequential(nn.GELU()))
    assert repr(m) == (
        "Sequential(\n  (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)\n"
        "  (1): Sequential(\n    (0): GELU(approximate='none')\n  )\n)"
    )
    assert repr(nn.Linear(2, 3)) == "Linear(in_features=2, out_features=3, bias=True)"
    assert repr(nn.Tanh()) == "Tanh()" and repr(Parameter([1.0])).startswith("Parameter containing:\ntensor([1.]")


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's names, shapes and order of every state there is (read off PyTorch 2.13)
# ---------------------------------------------------------------------------------------------------------------------


STATES = [
    (lambda: nn.Linear(3, 2), "weight 2 3, bias 2"),
    (lambda: nn.Linear(3, 2, False), "weight 2 3"),
    (lambda: nn.Embedding(5, 2), "weight 5 2"),
    (lambda: nn.Conv1d(4, 6, 3, groups=2), "weight 6 2 3, bias 6"),
    (lambda: nn.Conv2d(4, 6, (3, 2)), "weight 6 4 3 2, bias 6"),
    (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), "weight 4 3 3, bias 6"),
    (lambda: nn.ConvTranspose2d(4, 6, (3, 2), bias=False), "weight 4 6 3 2"),
    (lambda: nn.BatchNorm1d(3), "weight 3, bias 3, running_mean 3, running_var 3, num_batches_tracked"),
    (lambda: nn.BatchNorm2d(3, affine=False), "running_mean 3, running_var 3, num_batches_tracked"),
    (lambda: nn.BatchNorm2d(3, track_running_stats=False, bias=False), "weight 3"),
    (lambda: nn.InstanceNorm2d(3), ""),
    (lambda: nn.InstanceNorm2d(3, affine=True), "weight 3, bias 3"),
    (lambda: nn.LayerNorm((2, 3)), "weight 2 3, bias 2 3"),
    (lambda: nn.GroupNorm(2, 4), "weight 4, bias 4"),
    (lambda: nn.RMSNorm(3), "weight 3"),
    (lambda: nn.PReLU(2), "weight 2"),
    (lambda: nn.CrossEntropyLoss(np.ones(3)), "weight 3"),
    (lambda: nn.BCEWithLogitsLoss(pos_weight=np.ones(3)), "pos_weight 3"),
    (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight 12 4, in_proj_bias 12, out_proj.weight 4 4, out_proj.bias 4"),
    (lambda: nn.MultiheadAttention(4, 2, bias=False), "in_proj_weight 12 4, out_proj.weight 4 4"),
    (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        "q_proj_weight 4 4, k_proj_weight 4 3, v_proj_weight 4 5, in_proj_bias 12, out_proj.weight 4 4, out_proj.bias 4",
    ),
    (lambda: nn.GRU(2, 3, bias=False), "weight_ih_l0 9 2, weight_hh_l0 9 3"),
    (
        lambda: nn.LSTM(2, 3, 2, bidirectional=True),
        "weight_ih_l0 12 2, weight_hh_l0 12 3, bias_ih_l0 12, bias_hh_l0 12, "
        "weight_ih_l0_reverse 12 2, weight_hh_l0_reverse 12 3, bias_ih_l0_reverse 12, bias_hh_l0_reverse 12, "
        "weight_ih_l1 12 6, weight_hh_l1 12 3, bias_ih_l1 12, bias_hh_l1 12, "
        "weight_ih_l1_reverse 12 6, weight_hh_l1_reverse 12 3, bias_ih_l1_reverse 12, bias_hh_l1_reverse 12",
    ),
]


@pytest.mark.parametrize(("make", "state"), STATES, ids=lambda x: x[:30] if isinstance(x, str) else "")
def test_states_are_pytorchs(make, state):
    m = make()
    found = ", ".join(" ".join([name, *map(str, array.shape)]) for name, array in m.state_dict().items())
    assert found == state
    other = make()
    for p in other.parameters():
        with no_grad():
            p.zero_()
    other.load_state_dict(m.state_dict())
    assert all(np.array_equal(a, b) for a, b in zip(other.state_dict().values(), m.state_dict().values(), strict=True))
