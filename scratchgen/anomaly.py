"""Anomaly detection: the first op whose value or gradient turns NaN or infinite is named, with the user's line.

`detecting.on` says whether `Function.apply` and the sweep call the checks below.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from scratchgen.switch import Switch

_PACKAGE = os.path.dirname(__file__) + os.sep


class _Detecting:
    """Is every value and gradient checked for NaN and infinity? One answer for all threads."""

    def __init__(self) -> None:
        self.on = False


detecting = _Detecting()


class detect_anomaly(Switch):
    """Inside the `with`, the first op whose value or gradient turns NaN or infinite raises ArithmeticError.

    The message names the op, whether its forward or its gradient did it, and the user's line that called it. An op whose
    input was already NaN or infinite is not blamed. Slow: every array is scanned.
    """

    def __init__(self, mode: bool = True):
        self.mode = mode
        self.before: list[bool] = []  # one for each `with` that is open

    def __enter__(self) -> None:
        self.before.append(detecting.on)
        detecting.on = self.mode

    def __exit__(self, *error: object) -> None:
        detecting.on = self.before.pop()

    def own(self) -> detect_anomaly:
        return detect_anomaly(self.mode)


def _user_line() -> str:
    """The innermost line of the call stack that lies outside this package."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "scratchgen itself"
    path, line = frame.f_code.co_filename, frame.f_lineno
    return f"{path}:{line} in {frame.f_code.co_name}: {linecache.getline(path, line).strip()}"


def _finite(array: Any) -> bool:
    return getattr(array, "dtype", np.dtype(float)).kind not in "fc" or bool(np.isfinite(array).all())


def check_forward(node: Any, arrays: list[Any], outs: list[Any]) -> None:
    node.where = _user_line()
    if all(_finite(a) for a in arrays) and not all(_finite(y) for y in outs):
        kind = "a NaN" if any(np.isnan(y).any() for y in outs if y.dtype.kind in "fc") else "an infinity"
        raise ArithmeticError(f"{type(node).__name__}: the forward pass made {kind} from finite inputs, called at {node.where}")


def check_backward(node: Any, dys: Sequence[Any], grads: Sequence[Any]) -> None:
    if all(_finite(dy._data) for dy in dys):
        for i, g in enumerate(grads):
            if g is not None and not _finite(g._data):
                kind = "NaN" if np.isnan(g._data).any() else "infinity"
                where = (
                    getattr(node, "where", "") or "a line that was not recorded: enter detect_anomaly before the forward pass"
                )
                raise ArithmeticError(
                    f"{type(node).__name__}: the gradient of input {i} turned to {kind} from a finite cotangent; "
                    f"the op was called at {where}"
                )
