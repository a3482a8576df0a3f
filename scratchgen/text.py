"""Text as integers, and the rules that choose the next one.

tokenizer = CharTokenizer.train(text)
ids = tokenizer.encode("abc")                       int64 (n,)
next_id = sample(logits, temperature=0.8, top_p=0.95, rng=rng)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

__all__ = ["CharTokenizer", "LogitsError", "TokenError", "Tokenizer", "probabilities", "sample"]


class TokenError(ValueError):
    """A text or a token that the tokenizer does not know; the message names it and its position."""


class LogitsError(ValueError):
    """Logits that are no distribution, as of a model that has diverged: NaN, +∞, or a row without a possible token."""


class Tokenizer(ABC):
    """A map from text to ids 0 … vocab_size − 1 and back, with decode(encode(text)) = text.

    A subclass names its `kind`, and saves itself to a plain dict that JSON can carry.
    """

    kind: ClassVar[str]

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
        kinds = {cls.kind: cls for cls in Tokenizer.__subclasses__()}
        if not isinstance(state, dict) or state.get("kind") not in kinds:
            given = repr(state.get("kind")) if isinstance(state, dict) else type(state).__name__
            raise TokenError(f"tokenizer state: expected a dict whose 'kind' is one of {sorted(kinds)}, got {given}.")
        return kinds[state["kind"]]._from_dict(state)

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


# A Python string is a sequence of code points, lone surrogates included; UTF-32 is that sequence as an array.
def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _from_code_points(points: np.ndarray) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


# --------------------------------------------------------------------------------------------------------- sampling


def probabilities(
    logits: np.ndarray, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    r"""The distribution that `sample` draws from.

        p_i ∝ exp(z_i / τ) for i ∈ A,  0 elsewhere

        A without top_k, top_p    all tokens
        top_k                     the k tokens of largest z
        top_p                     the fewest tokens, largest first, whose probability is at least top_p
                                  (given the temperature, and given top_k where both are set)
        τ → 0                     all of p on the first largest z, which is argmax

    Of equal logits the one with the lower id counts as the larger, so A has exactly k members.

    logits z: (…, V), −inf for a token that cannot be;  p: float64 (…, V), each row summing to 1.

    Raises LogitsError, a ValueError: NaN or +inf, a row with no possible token.
    Raises ValueError: τ < 0, top_k < 1, top_p outside (0, 1].
    Source: Fan, Lewis & Dauphin 2018 (top-k); Holtzman et al. 2020, eq. 2-3 (top-p).
    """
    return _softmax(_restricted(logits, temperature, top_k, top_p))


def sample(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: np.random.Generator,
) -> np.ndarray:
    r"""One token id for each row of logits, drawn from `probabilities(logits, …)`.

        id = argmax_i (log p_i + g_i),   g_i = −log(−log u_i),  u_i ~ uniform(0, 1)         (the Gumbel-max trick)

    The noise is drawn for all V tokens whatever the rule, so two rules with the same `rng` state are comparable;
    temperature 0 draws none.

    logits: (…, V);  ids: int64 (…).  Errors: as `probabilities`; TypeError where rng is not a numpy Generator.
    Source: Gumbel 1954; Maddison, Tarlow & Minka 2014, §2.
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}.")
    z = _restricted(logits, temperature, top_k, top_p)
    return np.argmax(z if temperature == 0 else z + rng.gumbel(size=z.shape), axis=-1)


def _restricted(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """(z − max z) / τ in float64 where the token is in A, −inf elsewhere."""
    z = np.asarray(logits)
    if z.ndim == 0 or z.shape[-1] == 0 or z.dtype.kind not in "fiu":
        raise ValueError(f"logits: expected numbers of shape (…, V) with V ≥ 1, got {z.dtype} {z.shape}.")
    z = z.astype(np.float64)
    if not (z < np.inf).all():  # also false for NaN
        raise LogitsError("logits: expected finite numbers or −inf, got NaN or +inf.")
    top = z.max(axis=-1, keepdims=True)
    if np.isneginf(top).any():
        raise LogitsError("logits: expected a possible token in every row, got a row of −inf.")
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature: expected a finite number of at least 0, got {temperature!r}.")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1):
        raise ValueError(f"top_k: expected a whole number of at least 1, got {top_k!r}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p!r}.")

    V = z.shape[-1]
    if temperature == 0:
        return np.where(np.arange(V) == z.argmax(axis=-1)[..., None], 0.0, -np.inf)
    # The largest is moved to 0 before the division: a tiny τ then sends all others to −inf, their limit, and not NaN.
    with np.errstate(over="ignore", under="ignore"):
        z = (z - top) / temperature
    if (top_k is None or top_k >= V) and (top_p is None or top_p == 1):
        return z

    order = np.argsort(-z, axis=-1, kind="stable")  # rank → id; stable: lower id first among equals
    ranked = np.take_along_axis(z, order, axis=-1)
    if top_k is not None:
        ranked[..., top_k:] = -np.inf
    if top_p is not None and top_p < 1:
        p = _softmax(ranked)
        before = np.cumsum(p, axis=-1) - p  # the mass of all larger tokens: 0 for the largest,
        ranked[before >= top_p] = -np.inf  # which therefore always stays
    np.put_along_axis(z, order, ranked, axis=-1)
    return z


def _softmax(z: np.ndarray) -> np.ndarray:
    """exp(z_i) / Σ_j exp(z_j) for rows whose largest entry is 0."""
    with np.errstate(under="ignore"):  # a probability below the smallest float is 0
        e = np.exp(z)
        return e / e.sum(axis=-1, keepdims=True)
