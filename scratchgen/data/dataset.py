"""What a model can learn from: examples in batches, shuffled to learn from and in order to be scored on."""

from __future__ import annotations

import functools
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchgen.data.checks import DataError, require_natural

Batch = tuple[Any, ...]  # of arrays that begin with the same number of rows, or None


class Dataset(ABC):
    """Examples of one kind. A new kind is a subclass: what loading, training, scoring and sampling need is all here."""

    name: str

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @property
    @abstractmethod
    def about(self) -> str:
        """How many examples of what they are, for people to read: "1,438 images of 1×8×8"."""

    @abstractmethod
    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """The batches of steps start, start + 1, … without end; each is a pure function of the seed and the step."""

    @abstractmethod
    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """All examples once, in their order, or `limit` batches spread evenly over them."""

    @abstractmethod
    def contents(self) -> Iterable[np.ndarray]:
        """Arrays that tell these examples from any others; their checksum is kept with a run."""

    def metadata(self) -> dict[str, Any]:
        """What a sample needs to be made and read without the data, as JSON values or arrays: a tokenizer, names of classes."""
        return {}


@dataclass(frozen=True)
class Task:
    """Data to learn from and data held out, in batches of one size."""

    train: Dataset
    test: Dataset
    batch_size: int
    seed: int = 0

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches to learn from at steps start, start + 1, …"""
        return self.train.batches(self.batch_size, seed=self.seed, start=start)

    def held_out(self, limit: int | None = None) -> Iterator[Batch]:
        """The held-out data in order, or `limit` batches spread evenly over them."""
        return self.test.in_order(self.batch_size, limit)

    @functools.cached_property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of what is learned from and of what is held out: a run goes on with the same data or not at all."""
        return {"learned from": _sha256(self.train.contents()), "held out": _sha256(self.test.contents())}


def shuffled(n: int, batch_size: int, *, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """An endless run of shuffled batches of the rows 0 … n − 1, beginning with batch number `start`.

        batch k = rows π_e[j·B : (j+1)·B],   e = k div m,  j = k mod m,  m = n div B,
        π_e = the permutation of range(n) drawn from the seed (seed, e)

    The n mod B rows left over sit an epoch out; which they are changes with the epoch.

    Raises DataError at the call, not at the first batch: B larger than n, a negative seed or start.
    """
    require_natural("batch_size", batch_size, 1)
    require_natural("seed", seed, 0)
    require_natural("start", start, 0)
    if batch_size > n:
        raise DataError(f"batch_size: expected at most {n}, the number of rows, got {batch_size}.")

    def run() -> Iterator[np.ndarray]:
        m = n // batch_size
        for k in itertools.count(start):
            epoch, j = divmod(k, m)
            if j == 0 or k == start:
                order = np.random.default_rng((seed, epoch)).permutation(n)
            yield order[j * batch_size : (j + 1) * batch_size]

    return run()


def spread(n: int, at_most: int | None) -> np.ndarray:
    """The integers 0 … n − 1, or, where they are more than `at_most`, that many of them at equal distances."""
    return np.arange(n) if at_most is None or n <= at_most else np.arange(at_most) * n // at_most


def _sha256(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
