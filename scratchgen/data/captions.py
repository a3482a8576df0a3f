"""Pictures with captions: the data set of them, and how a user's own are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from scratchgen.data.checks import DataError, kind
from scratchgen.data.dataset import Batch, Dataset, shuffled, spread
from scratchgen.data.images import Images
from scratchgen.data.texts import Vocabulary


@dataclass(frozen=True, eq=False)
class Captioned(Images):
    """Pictures, each with a caption; and, where they are known, with the attributes that captions speak of.

    captions: N texts;  attributes: int64 (N, A), for each picture a value of each attribute, or None;
    values: name of an attribute → names of its values, in the order of the columns;
    stated: int64 (N, A), what the caption states, −1 where it leaves an attribute open; where None, all of it;
    unseen: bool (N), which pictures combine attributes as no picture to learn from does; where None, none of them.

    Raises DataError where there is not one caption, of at least a word, to each picture, or an attribute has no such value.
    """

    captions: tuple[str, ...] = ()
    attributes: np.ndarray | None = None
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stated: np.ndarray | None = None
    unseen: np.ndarray | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.captions) != len(self.x):
            raise DataError(f"{self.name}: expected a caption for each of {len(self.x)} pictures, got {len(self.captions)}.")
        for i, caption in enumerate(self.captions):
            if not caption.strip():
                raise DataError(f"{self.name}: expected a caption of at least one word, got none for picture {i}.")
        a, counts = self.attributes, [len(names) for names in self.values.values()]
        if a is None:
            return
        if not isinstance(a, np.ndarray) or a.dtype != np.int64 or a.shape != (len(self.x), len(counts)):
            raise DataError(f"{self.name}: attributes must be int64 of shape {(len(self.x), len(counts))}, got {kind(a)}.")
        for column, (name, count) in enumerate(zip(self.values, counts, strict=True)):
            if a[:, column].min() < 0 or a[:, column].max() >= count:
                raise DataError(
                    f"{self.name}: expected the attribute {name!r} in [0, {count}), "
                    f"got values from {a[:, column].min()} to {a[:, column].max()}."
                )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, {len(self):,} pictures of shape {self.shape} with captions)"

    @property
    def about(self) -> str:
        return f"{super().about} with captions"

    def mismatched(self, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
        """For each of these rows a caption that is not its own: another picture's, which says something else.

        Raises DataError where all captions are the same.
        """
        if len(set(self.captions)) < 2:
            raise DataError(f"{self.name}: expected at least two different captions, got {self.captions[0]!r} throughout.")
        wrong = []
        for row in rows:
            while (other := self.captions[rng.integers(len(self.captions))]) == self.captions[row]:
                pass
            wrong.append(other)
        return wrong

    def to_read(self) -> Captioned:
        """The pictures from which a classifier learns to read attributes, to judge a model that learns from these."""
        return self

    def contents(self) -> Iterable[np.ndarray]:
        captions = np.frombuffer("\n".join(self.captions).encode("utf-8", "surrogatepass"), np.uint8)
        return [*super().contents(), captions, *([] if self.attributes is None else [self.attributes])]

    def metadata(self) -> dict[str, Any]:
        return {**super().metadata(), "values": {name: list(names) for name, names in self.values.items()}}


class Words(Vocabulary, Protocol):
    """What is asked of a tokenizer of captions here: the words of a text, and which of them are known."""

    def split(self, text: str) -> list[str]: ...

    def __contains__(self, word: str) -> bool: ...

    def encode(self, text: str) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class CaptionTokens(Dataset):
    """Captioned pictures, their captions as tokens, and for each a wrong caption besides.

    A batch is (x, ids, wrong): x (B, C, H, W), the captions and the wrong ones int64 (B, length), −1 after the end. Words that
    are not known, as held-out captions may have them, are left out. Wrong captions are drawn anew in each epoch, and in
    order they are always the same ones.
    """

    pictures: Captioned
    tokenizer: Words
    length: int  # the most words that are kept of a caption

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.pictures.name

    @property
    def x(self) -> np.ndarray:
        """The pictures, (N, C, H, W)."""
        return self.pictures.x

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def about(self) -> str:
        return f"{self.pictures.about} of {self.tokenizer.vocab_size} words"

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """n captions → int64 (n, length), −1 after the end of each"""
        ids = np.full((len(captions), self.length), -1)
        for row, caption in zip(ids, captions, strict=True):
            known = " ".join(word for word in self.tokenizer.split(caption) if word in self.tokenizer)
            found = self.tokenizer.encode(known)[: self.length]
            row[: len(found)] = found
        return ids

    def _batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        captions = [self.pictures.captions[row] for row in rows]
        return self.pictures.x[rows], self.tokens(captions), self.tokens(self.pictures.mismatched(rows, rng))

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        chosen = shuffled(len(self), batch_size, seed=seed, start=start)
        return (self._batch(rows, np.random.default_rng((seed, step, 1))) for step, rows in enumerate(chosen, start))

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        rows = spread(len(self), limit and limit * batch_size)
        for i in range(0, len(rows), batch_size):
            yield self._batch(rows[i : i + batch_size], np.random.default_rng(i))

    def contents(self) -> Iterable[np.ndarray]:
        vocabulary = str((self.tokenizer.to_dict(), self.length)).encode("utf-8", "surrogatepass")
        return [*self.pictures.contents(), np.frombuffer(vocabulary, np.uint8)]

    def metadata(self) -> dict[str, Any]:
        examples = [self.pictures.captions[row] for row in spread(len(self), 64)]
        return {**self.pictures.metadata(), "tokenizer": self.tokenizer.to_dict(), "length": self.length, "captions": examples}


def read_captions(text: str, where: object) -> dict[str, str]:
    """File → its caption, from lines FILE, a tab, caption; empty lines are passed over.

    Raises DataError for a line without a tab, or with nothing on a side of it, and for a file that has two captions.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        file, tab, caption = (part.strip() for part in line.replace("\t", "\n\t\n", 1).partition("\n\t\n"))
        if "\t" not in line or not file or not caption:
            raise DataError(f"{where}: expected a file, a tab and its caption, got {line[:80]!r} in line {number}.")
        if file in found:
            raise DataError(f"{where}: expected one caption for {file}, got a second one in line {number}.")
        found[file] = caption
    if not found:
        raise DataError(f"{where}: expected lines of a file, a tab and its caption, got none.")
    return found
