"""Text as integers: tokenizers, and how they are saved."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np


class TokenError(ValueError):
    """A text or a token that the tokenizer does not know; the message names it and its position."""


KINDS: dict[str, type[Tokenizer]] = {}  # kind → the tokenizer of that kind


class Tokenizer(ABC):
    """A map from text to ids 0 … vocab_size − 1 and back, with decode(encode(text)) = text.

    A subclass names its `kind`, under which it stands in `KINDS`, and saves itself to a plain dict that JSON can carry.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        KINDS[cls.kind] = cls

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of different tokens."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """text → int64 (n,). Raises TokenError for what it cannot express."""

    @abstractmethod
    def decode(self, ids: np.ndarray) -> str:
        """integers (n,) → text. Raises TokenError for an id outside 0 … vocab_size − 1."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The tokenizer as a dict of JSON values, its kind under "kind"."""

    @classmethod
    @abstractmethod
    def _from_dict(cls, state: dict[str, Any]) -> Tokenizer: ...

    @staticmethod
    def from_dict(state: dict[str, Any]) -> Tokenizer:
        """The tokenizer that `to_dict` saved, whichever kind it is. Raises TokenError for anything else."""
        if not isinstance(state, dict) or state.get("kind") not in KINDS:
            found = repr(state.get("kind")) if isinstance(state, dict) else type(state).__name__
            raise TokenError(f"tokenizer state: expected a dict whose 'kind' is one of {sorted(KINDS)}, got {found}.")
        return KINDS[state["kind"]]._from_dict(state)

    def _check_ids(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.size == 0 and ids.ndim == 1:
            return ids.astype(np.int64)  # np.asarray([]) is float64, and means no tokens
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise TokenError(f"ids: expected integers of shape (n,), got {ids.dtype} {ids.shape}.")
        outside = (ids < 0) | (ids >= self.vocab_size)
        if outside.any():
            at = int(np.argmax(outside))
            raise TokenError(f"ids: expected tokens in 0 … {self.vocab_size - 1}, got {ids[at]} at position {at}.")
        return ids


class CharTokenizer(Tokenizer):
    """One token a character (Unicode code point), numbered in code point order."""

    kind = "char"

    def __init__(self, characters: str) -> None:
        """characters: the vocabulary; repeats and order do not matter. Raises TokenError where there are none."""
        if not isinstance(characters, str) or not characters:
            raise TokenError(f"vocabulary: expected a text with at least one character, got {characters!r}.")
        self._points = np.unique(_code_points(characters))  # sorted and without repeats

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        """The vocabulary of a text: every character that occurs in it."""
        return cls(text)

    @property
    def characters(self) -> str:
        """The vocabulary; the character at position i is token i."""
        return _from_code_points(self._points)

    @property
    def vocab_size(self) -> int:
        return len(self._points)

    def encode(self, text: str) -> np.ndarray:
        if not isinstance(text, str):
            raise TokenError(f"encode: expected a str, got {type(text).__name__}.")
        points = _code_points(text)
        ids = np.searchsorted(self._points, points)
        known = self._points[np.minimum(ids, self.vocab_size - 1)] == points
        if not known.all():
            at = int(np.argmin(known))
            raise TokenError(
                f"encode: the character {text[at]!r} (U+{ord(text[at]):04X}) at position {at} "
                f"is not among the {self.vocab_size} this tokenizer was trained on."
            )
        return ids.astype(np.int64)

    def decode(self, ids: np.ndarray) -> str:
        return _from_code_points(self._points[self._check_ids(ids)])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}

    @classmethod
    def _from_dict(cls, state: dict[str, Any]) -> CharTokenizer:
        return cls(state.get("characters"))


class WordTokenizer(Tokenizer):
    """One token a word, numbered in alphabetical order; capitals, spaces and punctuation are not kept.

    So decode(encode(text)) = text for a text of small letters with one space between two words.
    """

    kind = "word"

    def __init__(self, words: Iterable[str]) -> None:
        """words: the vocabulary; repeats and order do not matter. Raises TokenError where there are none, or one is no word."""
        self.words = tuple(sorted(set(words or ())))
        for word in self.words or ("",):
            if not isinstance(word, str) or self.split(word) != [word]:
                raise TokenError(f"vocabulary: expected at least one word, all in small letters, got {word!r}.")
        self._ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def train(cls, texts: Iterable[str]) -> WordTokenizer:
        """The vocabulary of texts: every word that occurs in them."""
        return cls(word for text in texts for word in cls.split(text))

    @staticmethod
    def split(text: str) -> list[str]:
        """The words of a text: runs of letters and digits, with what joins them inside a word, in small letters."""
        return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> np.ndarray:
        for word in self.split(text):
            if word not in self._ids:
                raise TokenError(f"encode: the word {word!r} is not among the {self.vocab_size}: {', '.join(self.words)}.")
        return np.array([self._ids[word] for word in self.split(text)], dtype=np.int64)

    def decode(self, ids: np.ndarray) -> str:
        return " ".join(self.words[i] for i in self._check_ids(ids))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "words": list(self.words)}

    @classmethod
    def _from_dict(cls, state: dict[str, Any]) -> WordTokenizer:
        return cls(state.get("words"))


# A Python string is a sequence of code points, lone surrogates included; UTF-32 is that sequence as an array.
def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _from_code_points(points: np.ndarray) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
