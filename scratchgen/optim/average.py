r"""The average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from scratchgen import device as devices
from scratchgen.ops.operands import array_of
from scratchgen.optim.optimizer import Array
from scratchgen.tensors import Tensor, constant

__all__ = ["EMA"]


class EMA:
    """θ̄ ← θ̄ + (1 − decay) (θ − θ̄), after each step: an exponential moving average of a module's parameters.

    θ̄ starts as a copy of θ; buffers (running statistics) are the module's own. Raises ValueError unless 0 ≤ decay < 1.
    Source: Polyak & Juditsky 1992; for GANs Yazıcı et al. 2018, arXiv:1806.04498.

        ema = EMA(model, 0.999)
        …; optimizer.step(); ema.update()
        with ema.swapped():
            evaluate(model)
    """

    def __init__(self, module: Any, decay: float):
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ValueError(f"EMA: expected decay to be a number of at least 0 and below 1, got {decay!r}")
        self.module, self.decay = module, decay
        self.average: dict[str, Array] = {name: p.data.copy() for name, p in module.named_parameters()}
        self._away = False  # does the module hold the average, instead of its own weights?

    def update(self) -> None:
        """Move the average towards the parameters as they are now."""
        if self._away:
            raise RuntimeError("EMA.update: the average is in the module; leave swapped() first")
        for name, p in self.module.named_parameters():
            average = self.average[name]
            average += (1 - self.decay) * (p.data - average)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[Any]:
        """Inside the `with`, the module has the averaged weights; afterwards its own again, whatever happened."""
        if self._away:
            raise RuntimeError("EMA.swapped: the average is in the module already")
        own = [(p, p.data.copy()) for _, p in self.module.named_parameters()]
        self._away = True
        try:
            for name, p in self.module.named_parameters():
                p.data = self.average[name]
            yield self.module
        finally:
            for p, array in own:
                p.data = array
            self._away = False

    def state_dict(self) -> dict[str, Tensor]:
        """Name of each parameter -> a copy of its average: a state that the module itself could load."""
        return {name: constant(devices.owned(average)) for name, average in self.average.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from an average, as tensors or arrays.

        All or nothing: raises ValueError where names or shapes are others than here.
        """
        arrays = {name: array_of(value) for name, value in state_dict.items()}
        wrong = sorted(set(arrays) ^ set(self.average)) or [
            f"{name} of shape {array.shape} for {self.average[name].shape}"
            for name, array in arrays.items()
            if array.shape != self.average[name].shape
        ]
        if wrong:
            raise ValueError(f"EMA.load_state_dict: expected the module's names and shapes, but not so {', '.join(wrong)}")
        for name, array in arrays.items():
            self.average[name][...] = devices.moved(array, devices.of(self.average[name]))
