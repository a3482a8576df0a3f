"""Text, from the bytes of a file to the batches that a model learns from: its split, its tokens, windows of them.

The way there: training/tasks.load calls `data.load` for both splits, which calls `read_text` and `cut`, and then the family's
`prepare` (for a GPT, `tokenize`), which makes `Tokens`. training/loop._loop draws from `Task.batches`, which calls
`Tokens.batches`, and hands each batch to `State.advance`, which calls the model's `training_step`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scratchgen.data.checks import DataError, kind, require_natural, unreadable
from scratchgen.data.dataset import Batch, Dataset, spread


@dataclass(frozen=True)
class Text:
    """One non-empty string."""

    text: str
    name: str = "text"

    def __post_init__(self) -> None:
        if not self.text:
            raise DataError(f"{self.name}: the text is empty; expected at least one character.")

    def __len__(self) -> int:
        return len(self.text)

    def __repr__(self) -> str:
        return f"Text(name={self.name!r}, {len(self):,} characters)"


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, each line ended by one newline. Raises DataError where it cannot be read or is not UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # -sig: without the byte-order mark, if there is one
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, got the byte 0x{error.object[error.start]:02x} at offset {error.start}."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def cut(text: str, split: str, name: object) -> str:
    """A split of one text: its first nine tenths to learn from, or the rest to test."""
    at = len(text) - len(text) // 10
    part = text[at:] if split == "test" else text[:at]
    if not part:
        raise DataError(
            f"{name}: expected at least {10 if split == 'test' else 1} characters for a {split} split, got {len(text)}."
        )
    return part


class Vocabulary(Protocol):
    """What is asked of a tokenizer here."""

    @property
    def vocab_size(self) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Tokens(Dataset):
    """A text as tokens, in windows of `block_size` of them.

    ids: integers (n,);  a batch: (x, y), int64 (B, T) both, y one token ahead of x.
    """

    ids: np.ndarray
    tokenizer: Vocabulary
    block_size: int
    name: str = "tokens"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def about(self) -> str:
        return f"{len(self):,} tokens, {self.tokenizer.vocab_size} different"

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches of windows that begin anywhere, those that `windows` makes for steps start, start + 1, …"""
        return (windows(self.ids, self.block_size, batch_size, seed=seed, step=step) for step in itertools.count(start))

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """The text in order, cut into windows, or `limit` batches of these spread evenly over it.

        Batches are full, so that their mean is the mean over tokens.
        """
        T = min(self.block_size, len(self) - 1)
        n = (len(self) - 1) // T
        B = min(batch_size, n)
        x, y = self.ids[: n * T].reshape(n, T), self.ids[1 : n * T + 1].reshape(n, T)
        rows = spread(n, limit and limit * B)
        for i in range(0, len(rows) - B + 1, B):
            yield x[rows[i : i + B]], y[rows[i : i + B]]

    def contents(self) -> Iterable[np.ndarray]:
        vocabulary = str(self.tokenizer.to_dict()).encode("utf-8", "surrogatepass")
        return [self.ids, np.frombuffer(vocabulary, np.uint8)]

    def metadata(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.to_dict()}


def windows(
    tokens: np.ndarray,
    block_size: int,
    batch_size: int,
    *,
    seed: int,
    step: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Batch number `step` of random windows of a token sequence, and the same windows one token later.

        x_b = t[i_b : i_b + T],   y_b = t[i_b + 1 : i_b + T + 1],   i_b uniform on 0 … n − T − 1, from (seed, step)

    tokens: integers (n,), an array or a memory map;  T = block_size;  x, y: int64 (batch_size, T).

    Raises DataError: tokens that are not one row of integers, fewer than T + 1 of them, or a batch of 2³¹ windows or more.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"tokens: expected integers of shape (n,), got {kind(tokens)}.")
    for name, value, least in (
        ("block_size", block_size, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("step", step, 0),
    ):
        require_natural(name, value, least)
    if len(tokens) <= block_size:
        raise DataError(f"tokens: expected at least block_size + 1 = {block_size + 1} of them, got {len(tokens)}.")
    if batch_size >= 2**31:  # more than any memory holds
        raise DataError(f"batch_size: expected a number below {2**31}, got {batch_size}.")
    first = np.random.default_rng((seed, step)).integers(0, len(tokens) - block_size, size=batch_size)
    window = tokens[first[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1)
    return window[:, :-1].copy(), window[:, 1:].copy()
