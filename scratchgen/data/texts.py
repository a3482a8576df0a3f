"""Text: as one string, and as the tokens that a model of text learns from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scratchgen.data.batching import windows
from scratchgen.data.checks import DataError
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
        """Batches of windows that begin anywhere, as by `data.windows`."""
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
