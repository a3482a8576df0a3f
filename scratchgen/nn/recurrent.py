r"""Recurrent layers: a state that is carried from step to step.

What the inputs contribute to the gates is one matrix product for the whole sequence; only what the state contributes
must wait for it. Of several layers each reads the outputs of the one below; of two directions the second reads the
sequence from its end, and the outputs of both stand side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchgen import functional as F
from scratchgen import ops, random
from scratchgen.nn import init
from scratchgen.nn.module import Module, blank, number, whole
from scratchgen.tensors import Tensor, constant

Generator = np.random.Generator


class _Recurrent(Module):
    """Layers and directions around `step`, which maps the state of one cell to the next: a tuple, the output first."""

    gates: int  # blocks of hidden_size rows in each weight
    states: int  # tensors in the state of a cell
    projects = False  # may the output be narrower than the rest of the state?

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__()
        self.input_size, self.hidden_size = (
            whole(self, "input_size", input_size),
            whole(self, "hidden_size", hidden_size),
        )
        self.num_layers = whole(self, "num_layers", num_layers)
        self.dropout = number(self, "dropout", dropout, 0, 1)
        if dropout and num_layers == 1:
            name = type(self).__name__
            raise ValueError(f"{name}: dropout acts between layers: expected more than one for dropout {dropout}, got 1")
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.generator = generator and random.generator(generator)
        name = type(self).__name__
        if proj_size and not self.projects:
            raise ValueError(f"{name}: expected proj_size 0, as only LSTM has projections, got {proj_size}")
        if isinstance(proj_size, bool) or not isinstance(proj_size, int) or not 0 <= proj_size < hidden_size:
            raise ValueError(f"{name}: expected proj_size from 0 to hidden_size − 1, {hidden_size - 1}, got {proj_size!r}")
        self.proj_size = proj_size
        rows, width = self.gates * hidden_size, self.output_width
        self._cells: list[str] = []  # the suffix of the parameters' names, for each cell
        for layer in range(num_layers):
            columns = input_size if layer == 0 else width * (1 + bidirectional)
            for suffix in ("", "_reverse")[: 1 + bidirectional]:
                shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, columns), "weight_hh": (rows, width)}
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else {}
                shapes |= {"weight_hr": (width, hidden_size)} if proj_size else {}
                for kind, shape in shapes.items():
                    self.register_parameter(f"{kind}_l{layer}{suffix}", blank(self, shape, dtype))
                self._cells.append(f"l{layer}{suffix}")
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """All weights and biases ~ U(−1/√hidden_size, 1/√hidden_size)"""
        bound = self.hidden_size**-0.5
        for p in self.parameters():
            init.uniform_(p, -bound, bound, generator)

    @property
    def output_width(self) -> int:
        """The width of one direction's output."""
        return self.proj_size or self.hidden_size

    def step(self, x: Tensor, state: tuple[Tensor, ...], weight: Tensor, bias: Tensor | None, *projection: Tensor) -> Any:
        """The state after one step. x: (N, gates · hidden), what the input contributes; state: (N, hidden) each."""
        raise NotImplementedError

    def _run(self, input: Tensor, initial: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs of the last layer, and the last state of every cell."""
        name, directions = type(self).__name__, 1 + self.bidirectional
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            form = f"(N, T, {self.input_size})" if self.batch_first else f"(T, N, {self.input_size})"
            form += f", or (T, {self.input_size}) without a batch"
            raise ValueError(f"{name}: expected an input of shape {form}, got {input.shape}")
        batched = input.ndim == 3
        x = input.unsqueeze(1) if not batched else input.transpose(0, 1) if self.batch_first else input  # (T, N, in)
        if not x.shape[0]:
            raise ValueError(f"{name}: expected a sequence of at least one step, got shape {input.shape}")
        cells, n = self.num_layers * directions, x.shape[1]
        widths = (self.output_width, self.hidden_size)[: self.states]
        if initial is None:
            initial = tuple([constant(np.zeros_like(x.data, shape=(cells, n, width))) for width in widths])
        else:
            for h, width in zip(initial, widths, strict=True):
                expected = (cells, n, width) if batched else (cells, width)
                if h.shape != expected:
                    raise ValueError(f"{name}: expected an initial state of shape {expected}, got {h.shape}")
            initial = tuple([h.reshape(cells, n, h.shape[-1]) for h in initial])

        last = []
        for layer in range(self.num_layers):
            outputs = []
            for backwards in range(directions):
                cell = layer * directions + backwards
                kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
                w_ih, w_hh, b_ih, b_hh, w_hr = [getattr(self, f"{kind}_{self._cells[cell]}", None) for kind in kinds]
                projection = () if w_hr is None else (w_hr,)
                steps = list(F.linear(x, w_ih, b_ih).unbind(0))  # T of (N, gates · hidden)
                state, hs = tuple([h[cell] for h in initial]), []
                for gates in reversed(steps) if backwards else steps:
                    state = self.step(gates, state, w_hh, b_hh, *projection)
                    hs.append(state[0])
                outputs.append(ops.stack(hs[::-1] if backwards else hs))  # (T, N, hidden)
                last.append(state)
            x = outputs[0] if directions == 1 else ops.cat(outputs, -1)  # (T, N, directions · hidden)
            if layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training, generator=self.generator)
        states = tuple([ops.stack(list(hs)) for hs in zip(*last, strict=True)])  # (layers · directions, N, hidden) each
        if not batched:
            return x.squeeze(1), tuple([h.squeeze(1) for h in states])
        return x.transpose(0, 1) if self.batch_first else x, states

    def extra_repr(self) -> str:
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False, "proj_size": 0}
        special = [name for name, value in usual.items() if getattr(self, name) != value]
        return f"{self.input_size}, {self.hidden_size}" + "".join(f", {self._shown(name)}" for name in special)


class GRU(_Recurrent):
    r"""r = σ(W_ir x + b_ir + W_hr h + b_hr)             the reset gate
    z = σ(W_iz x + b_iz + W_hz h + b_hz)             the update gate
    n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))    the candidate
    h ← (1 − z) ⊙ n + z ⊙ h

    input (T, N, in), h_0 (layers · directions, N, hidden), zeros unless given
    → output (T, N, directions · hidden), h_T. With `batch_first` input and output are (N, T, ·); without N all lack it.
    weight_ih_l0 (3 hidden, in), weight_hh_l0 (3 hidden, hidden), bias_ih_l0, bias_hh_l0 hold r, z, n in this order;
    further layers are _l1, …, the other direction _reverse. `dropout` acts on the outputs of all layers but the last.
    Raises ValueError where shapes do not fit.
    Source: Cho et al. 2014, arXiv:1406.1078; r is applied after the product with W_hn, as in cuDNN and PyTorch.
    """

    gates, states = 3, 1

    def step(self, x: Tensor, state: tuple[Tensor, ...], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        (h,) = state
        x_r, x_z, x_n = x.chunk(3, -1)
        h_r, h_z, h_n = F.linear(h, weight, bias).chunk(3, -1)
        r, z = F.sigmoid(x_r + h_r), F.sigmoid(x_z + h_z)
        n = F.tanh(x_n + r * h_n)
        return (n + z * (h - n),)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, (h,) = self._run(input, None if hx is None else (hx,))
        return output, h


class LSTM(_Recurrent):
    r"""i = σ(W_ii x + b_ii + W_hi h + b_hi)             the input gate
    f = σ(W_if x + b_if + W_hf h + b_hf)             the forget gate
    g = tanh(W_ig x + b_ig + W_hg h + b_hg)          the candidate
    o = σ(W_io x + b_io + W_ho h + b_ho)             the output gate
    c ← f ⊙ c + i ⊙ g,    h ← o ⊙ tanh c

    input (T, N, in), (h_0, c_0), each (layers · directions, N, hidden), zeros unless given
    → output (T, N, directions · hidden), (h_T, c_T). With `batch_first` input and output are (N, T, ·); without N all
    lack it. weight_ih_l0 (4 hidden, in), weight_hh_l0 (4 hidden, hidden), bias_ih_l0, bias_hh_l0 hold i, f, g, o in
    this order; further layers are _l1, …, the other direction _reverse. `dropout` acts on the outputs of all layers but
    the last. With a `proj_size` p below hidden, h ← W_hr (o ⊙ tanh c) is p wide, W_hr being weight_hr_l0 (p, hidden):
    then W_h·, h_0, h_T and the output have length p instead of hidden. Raises ValueError where shapes do not fit.
    Source: Hochreiter & Schmidhuber 1997; the forget gate is Gers, Schmidhuber & Cummins 2000; the projection is Sak,
    Senior & Beaufays 2014, arXiv:1402.1128.
    """

    gates, states, projects = 4, 2, True

    def step(self, x: Tensor, state: tuple[Tensor, ...], weight: Tensor, bias: Tensor | None, *projection: Tensor) -> Any:
        h, c = state
        i, f, g, o = (x + F.linear(h, weight, bias)).chunk(4, -1)
        c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
        h = F.sigmoid(o) * F.tanh(c)
        return F.linear(h, *projection) if projection else h, c

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if hx is not None and (not isinstance(hx, tuple | list) or len(hx) != 2):
            raise TypeError(f"LSTM: expected the initial state as a pair (h_0, c_0), got {type(hx).__name__}")
        output, (h, c) = self._run(input, None if hx is None else tuple(hx))
        return output, (h, c)
