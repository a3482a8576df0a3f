"""Tokenizers decode what they encoded; sampling rules draw from the distribution they state."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchgen.text import CharTokenizer, TokenError, Tokenizer, WordTokenizer, penalised, probabilities, sample

few = settings(derandomize=True, max_examples=60, deadline=None)
anything = st.text(st.characters(), min_size=1, max_size=40)  # lone surrogates and NUL included


# ------------------------------------------------------------------------------------------------------- characters


@few
@given(anything)
def test_decode_undoes_encode(text):
    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64 and ids.shape == (len(text),)
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == len(set(text)) == ids.max() + 1 and ids.min() == 0
    assert tokenizer.characters == "".join(sorted(set(text)))


@few
@given(anything)
def test_state_goes_through_json(text):
    tokenizer = CharTokenizer.train(text)
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert isinstance(again, CharTokenizer) and again.to_dict() == tokenizer.to_dict()
    assert np.array_equal(again.encode(text), tokenizer.encode(text))


def test_worked_by_hand():
    tokenizer = CharTokenizer.train("cab😀 a")
    assert tokenizer.encode("a 😀").tolist() == [1, 0, 4] and tokenizer.decode(np.array([3, 1, 2], np.uint8)) == "cab"
    assert tokenizer.encode("").shape == (0,) and tokenizer.encode("").dtype == np.int64
    assert tokenizer.decode([]) == "" and tokenizer.decode([4]) == "😀"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("abxc", r"the character 'x' \(U\+0078\) at position 2 is not among the 3"),
        ("😀", r"'😀' \(U\+1F600\) at position 0"),
        ("\n", r"'\\n' \(U\+000A\)"),
        (b"abc", "expected a str, got bytes"),
    ],
)
def test_encode_refuses(text, said):
    with pytest.raises(TokenError, match=said):
        CharTokenizer.train("abc").encode(text)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([0, 1, 3], "expected tokens in 0 … 2, got 3 at position 2"),
        ([0, -1], "got -1 at position 1"),
        ([0.0], "expected integers"),
        ([[0]], r"got int64 \(1, 1\)"),
        (0, r"shape \(n,\)"),
    ],
)
def test_decode_refuses(ids, said):
    with pytest.raises(TokenError, match=said):
        CharTokenizer.train("abc").decode(ids)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: CharTokenizer.train(""), "at least one character"),
        (lambda: CharTokenizer.train(None), "at least one character, got None"),
        (lambda: Tokenizer.from_dict({"kind": "syllable"}), r"one of \['bpe', 'bytes', 'char', 'word'\], got 'syllable'"),
        (lambda: Tokenizer.from_dict({}), "got None"),
        (lambda: Tokenizer.from_dict([]), "got list"),
        (lambda: Tokenizer.from_dict({"kind": "char"}), "at least one character, got None"),
    ],
)
def test_bad_vocabularies(call, said):
    with pytest.raises(TokenError, match=said):
        call()


# ------------------------------------------------------------------------------------------------------------ words

words = st.lists(st.text("abcxyzäé019", min_size=1, max_size=4), min_size=1, max_size=8)


@few
@given(words)
def test_words_decode_to_the_text_in_its_normal_form(found):
    text = " ".join(found)
    tokenizer = WordTokenizer.train([text, text])
    assert tokenizer.words == tuple(sorted(set(found))) and tokenizer.vocab_size == len(set(found))
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64 and tokenizer.decode(ids) == text
    assert np.array_equal(tokenizer.encode(f"  {text.upper()}! "), ids)
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert isinstance(again, WordTokenizer) and again.words == tokenizer.words
    assert all(word in tokenizer for word in found) and "no" not in tokenizer


def test_words_by_hand():
    tokenizer = WordTokenizer.train(["The cat's mat,", "the well-known cat"])
    assert tokenizer.words == ("cat", "cat's", "mat", "the", "well-known")
    assert tokenizer.encode("Mat: THE cat's, (the) mat!").tolist() == [2, 3, 1, 3, 2] and tokenizer.encode("").shape == (0,)
    with pytest.raises(TokenError, match="the word 'dog' is not among the 5: cat, cat's, mat, the, well-known"):
        tokenizer.encode("the dog")
    for vocabulary, got in (([], "''"), (["a", "B"], "'B'"), (["a b"], "'a b'"), ([3], "3")):
        with pytest.raises(TokenError, match=f"all in small letters, got {got}"):
            WordTokenizer(vocabulary)


# --------------------------------------------------------------------------------------------------------- sampling


def brute_force(z, temperature, top_k, top_p, min_p):
    """The docstring of `probabilities`, one row and one token at a time."""
    ranked = sorted(range(len(z)), key=lambda i: (-z[i], i))
    if temperature == 0:
        return np.eye(len(z))[ranked[0]]
    weight = {i: np.exp(max((z[i] - max(z)) / temperature, -700.0)) if z[i] > -np.inf else 0.0 for i in ranked}
    kept = ranked[:top_k]
    if top_p is not None and top_p < 1:
        total, mass = sum(weight[i] for i in kept), 0.0
        for size, i in enumerate(kept, 1):
            mass += weight[i] / total
            if mass >= top_p:
                kept = kept[:size]
                break
    if min_p is not None:
        kept = [i for i in kept if weight[i] >= min_p * max(weight.values())]
    p = np.zeros(len(z))
    p[kept] = [weight[i] for i in kept]
    return p / p.sum()


# Halves make ties frequent; a top_p between the odd multiples of 1/1000 is never met exactly.
logit_rows = st.lists(st.integers(-8, 8).map(lambda n: n / 2) | st.just(-np.inf), min_size=1, max_size=8).filter(
    lambda row: max(row) > -np.inf
)


@few
@given(
    row=logit_rows,
    temperature=st.sampled_from([0, 0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 10),
    top_p=st.none() | st.just(1.0) | st.integers(1, 999).map(lambda n: n / 1000 + 0.000_317),
    min_p=st.none() | st.just(1.0) | st.integers(1, 999).map(lambda n: n / 1000 + 0.000_317),
)
def test_probabilities_against_brute_force(row, temperature, top_k, top_p, min_p):
    rules = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    p = probabilities(np.array(row), **rules)
    expected = brute_force(row, *rules.values())
    assert p.dtype == np.float64 and np.array_equal(p > 0, expected > 0)
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    drawn = sample(np.tile(row, (50, 1)), **rules, rng=np.random.default_rng(0))
    assert expected[drawn].min() > 0


def test_a_penalty_makes_what_was_seen_less_likely_whatever_its_sign():
    logits = np.array([[2.0, -1.0, 0.0, 3.0], [2.0, -1.0, 0.0, 3.0]])
    found = penalised(logits, np.array([[0, 1, 1], [3, -1, -1]]), 2.0)
    assert found.tolist() == [[1.0, -2.0, 0.0, 3.0], [2.0, -1.0, 0.0, 1.5]]
    assert penalised(logits, np.array([[0], [0]]), 1.0) is logits and logits[0, 0] == 2
    for wrong in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="repetition_penalty: expected a finite number above 0"):
            penalised(logits, np.array([[0], [0]]), wrong)


def test_sampling_follows_the_probabilities():
    z, n = np.array([0.0, 1.0, -1.0, 2.0, -np.inf]), 20_000
    for rule in ({}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.8}, {"temperature": 3, "top_k": 3, "top_p": 0.9}):
        ids = sample(np.broadcast_to(z, (n, 5)), **rule, rng=np.random.default_rng(1))
        p = probabilities(z, **rule)
        error = np.sqrt(p * (1 - p) / n)
        assert (np.abs(np.bincount(ids, minlength=5) / n - p) <= 4.5 * error).all()


def test_rows_are_independent_of_their_neighbours_and_of_the_shape():
    z = np.random.default_rng(0).normal(size=(3, 4, 7)).astype(np.float32)
    before = z.copy()
    ids = sample(z, temperature=0.7, top_k=5, top_p=0.9, rng=np.random.default_rng(2))
    assert ids.shape == (3, 4) and ids.dtype == np.int64 and np.array_equal(z, before)
    flat = sample(z.reshape(12, 7), temperature=0.7, top_k=5, top_p=0.9, rng=np.random.default_rng(2))
    assert np.array_equal(ids.ravel(), flat)
    p = probabilities(z, top_k=5, top_p=0.9)
    for i in np.ndindex(3, 4):
        assert np.array_equal(p[i], probabilities(z[i], top_k=5, top_p=0.9))
    assert sample(z[0, 0], rng=np.random.default_rng(0)).shape == ()
    assert sample(z[:0], top_k=2, rng=np.random.default_rng(0)).shape == (0, 4)


def test_the_cold_limit_is_argmax_and_draws_nothing():
    z = np.random.default_rng(0).normal(size=(50, 9))
    z[0] = 1.0  # all equal: the first
    rng = np.random.default_rng(7)
    state = rng.bit_generator.state
    assert np.array_equal(sample(z, temperature=0, rng=rng), z.argmax(axis=1)) and rng.bit_generator.state == state
    for cold in (1e-12, 5e-324):
        assert np.array_equal(sample(z[1:], temperature=cold, rng=rng), z[1:].argmax(axis=1))
        assert np.array_equal(probabilities(z[:1], temperature=cold), np.full((1, 9), 1 / 9))


def test_extreme_logits_stay_finite():
    p = probabilities(np.array([1e308, -1e308, 0.0]))
    assert p.tolist() == [1, 0, 0]
    np.testing.assert_allclose(probabilities(np.array([1e4, 1e4 - 1])), [1 / (1 + np.exp(-1)), 1 / (1 + np.e)])
    assert probabilities(np.array([3, 3], dtype=np.int32)).tolist() == [0.5, 0.5]


def test_ties_keep_exactly_k():
    assert probabilities(np.zeros(4), top_k=2).tolist() == [0.5, 0.5, 0, 0]
    assert probabilities(np.zeros(4), top_p=0.5).tolist() == [0.5, 0.5, 0, 0]
    assert probabilities(np.array([0.0, 5.0]), top_p=1e-9).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("logits", "rule", "said"),
    [
        (np.array([0.0, np.nan]), {}, "got NaN or \\+inf"),
        (np.array([0.0, np.inf]), {}, "got NaN or \\+inf"),
        (np.array([[0.0, 1.0], [-np.inf, -np.inf]]), {}, "got a row of −inf"),
        (np.zeros((2, 0)), {}, "V ≥ 1"),
        (np.float64(1), {}, r"shape \(…, V\)"),
        (np.array(["a"]), {}, "expected numbers"),
        (np.zeros(3), {"temperature": -1}, "temperature: expected a finite number of at least 0, got -1"),
        (np.zeros(3), {"temperature": np.nan}, "temperature"),
        (np.zeros(3), {"temperature": np.inf}, "temperature"),
        (np.zeros(3), {"top_k": 0}, "top_k: expected a whole number of at least 1, got 0"),
        (np.zeros(3), {"top_k": 1.5}, "top_k"),
        (np.zeros(3), {"top_p": 0}, r"top_p: expected a number in \(0, 1\], got 0"),
        (np.zeros(3), {"top_p": 1.1}, "top_p"),
        (np.zeros(3), {"top_p": np.nan}, "top_p"),
        (np.zeros(3), {"min_p": 0}, r"min_p: expected a number in \(0, 1\], got 0"),
        (np.zeros(3), {"temperature": 0, "min_p": 2}, "min_p"),
        (np.zeros(3), {"temperature": 0, "top_k": -1}, "top_k"),  # checked also where it would make no difference
    ],
)
def test_sampling_refuses(logits, rule, said):
    for call in (probabilities, lambda z, **r: sample(z, **r, rng=np.random.default_rng(0))):
        with pytest.raises(ValueError, match=said):
            call(logits, **rule)


def test_sampling_wants_a_generator():
    for rng in (None, 0, np.random.RandomState(0)):
        with pytest.raises(TypeError, match=r"expected a numpy\.random\.Generator"):
            sample(np.zeros(3), rng=rng)
