"""The rules that choose the next token from its logits."""

from __future__ import annotations

import numpy as np


class LogitsError(ValueError):
    """Logits that are no distribution, as of a model that has diverged: NaN, +∞, or a row without a possible token."""


def probabilities(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> np.ndarray:
    r"""The distribution that `sample` draws from.

        p_i ∝ exp(z_i / τ) for i ∈ A,  0 elsewhere

        A without any rule        all tokens
        top_k                     the k tokens of largest z
        top_p                     the fewest tokens, largest first, whose probability is at least top_p
                                  (at that temperature, and among the top_k where both are set)
        min_p                     of these the tokens at least min_p times as likely as the likeliest, at that temperature
        τ → 0                     all of p on the first largest z, which is argmax

    Of equal logits the one with the lower id counts as the larger, so A has exactly k members.

    logits z: (…, V), −inf for a token that cannot be;  p: float64 (…, V), each row summing to 1.

    Raises LogitsError, a ValueError: NaN or +inf, a row with no possible token.
    Raises ValueError: τ < 0, top_k < 1, top_p or min_p outside (0, 1].
    Source: Fan, Lewis & Dauphin 2018 (top-k); Holtzman et al. 2020, eq. 2-3 (top-p); Nguyen et al. 2024,
    arXiv:2407.01082 (min-p).
    """
    return _softmax(_restricted(logits, temperature, top_k, top_p, min_p))


def sample(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
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
    z = _restricted(logits, temperature, top_k, top_p, min_p)
    return np.argmax(z if temperature == 0 else z + rng.gumbel(size=z.shape), axis=-1)


def penalised(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    r"""Logits in which tokens that a row has already are less likely, for penalty ρ > 1.

        z_i / ρ  where z_i > 0,   ρ z_i  where z_i < 0,     for i among the tokens seen; the others stay

    Dividing alone would make a token of negative logit likelier. Logits: (B, V);  seen: integers (B, T), −1 for none.
    Raises ValueError: ρ that is no finite number above 0.   Source: Keskar et al. 2019 (CTRL), arXiv:1909.05858, §4.1.
    """
    if not 0 < penalty < np.inf:
        raise ValueError(f"repetition_penalty: expected a finite number above 0, got {penalty!r}.")
    if penalty == 1:
        return logits
    again = np.zeros((len(logits), logits.shape[1] + 1), bool)
    np.put_along_axis(again, seen, True, axis=1)  # −1 is the last column, that of no token
    return np.where(again[:, :-1], np.where(logits > 0, logits / penalty, logits * penalty), logits)


def _restricted(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> np.ndarray:
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
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{name}: expected a number in (0, 1], got {share!r}.")

    V = z.shape[-1]
    if temperature == 0:
        return np.where(np.arange(V) == z.argmax(axis=-1)[..., None], 0.0, -np.inf)
    # The largest is moved to 0 before the division: a tiny τ then sends all others to −inf, their limit, and not NaN.
    with np.errstate(over="ignore", under="ignore"):
        z = (z - top) / temperature
    lives = z >= (-np.inf if min_p is None else np.log(min_p))  # p_i / max p = exp(z_i)
    if (top_k is None or top_k >= V) and (top_p is None or top_p == 1):
        return np.where(lives, z, -np.inf)

    order = np.argsort(-z, axis=-1, kind="stable")  # rank → id; stable: lower id first among equals
    ranked = np.take_along_axis(z, order, axis=-1)
    if top_k is not None:
        ranked[..., top_k:] = -np.inf
    if top_p is not None and top_p < 1:
        p = _softmax(ranked)
        before = np.cumsum(p, axis=-1) - p  # the mass of all larger tokens: 0 for the largest,
        ranked[before >= top_p] = -np.inf  # which therefore always stays
    np.put_along_axis(z, order, ranked, axis=-1)
    return np.where(lives, z, -np.inf)


def _softmax(z: np.ndarray) -> np.ndarray:
    """exp(z_i) / Σ_j exp(z_j) for rows whose largest entry is 0."""
    with np.errstate(under="ignore"):  # a probability below the smallest float is 0
        e = np.exp(z)
        return e / e.sum(axis=-1, keepdims=True)
