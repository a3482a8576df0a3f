"""Byte-pair encoding: the merges that a naive trainer finds, any text there and back, GPT-2's cut into words and its files."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.text import BPETokenizer, ByteTokenizer, TokenError, Tokenizer
from scratchgen.text.bpe import LETTERS, TIES, learn, spelled, unspelled, words

TEXT = "low low low low low lower lower widest widest widest newest newest newest newest newest newest"
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates, too


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello world", ["Hello", " world"]),
        ("we'll  don't", ["we", "'ll", " ", " don", "'t"]),
        ("  indented", [" ", " indented"]),
        ("tail   ", ["tail", "   "]),
        ("a\n\n b", ["a", "\n\n", " b"]),
        ("x=12;", ["x", "=", "12", ";"]),
        ("3½ x²", ["3½", " x", "²"]),  # ½ and ² are numbers
        ("naïve élan", ["naïve", " élan"]),
        ("日本語 2024年", ["日本語", " 2024", "年"]),
        ("e\u0301t", ["e", "\u0301", "t"]),  # an accent apart is a mark, no letter
        ("a\u00a0b", ["a", "\u00a0", "b"]),
        ("a\x1fb", ["a", "\x1f", "b"]),  # a control character, and no white space
        ("'S 's", ["'", "S", " '", "s"]),
        ("", []),
    ],
)
def test_text_is_cut_as_gpt2_cuts_it(text, expected):
    assert words(text) == expected


@given(ANY_TEXT)
def test_words_are_the_text_and_each_is_of_one_kind(text):
    found = words(text)
    assert "".join(found) == text
    for word in found:
        body = word[1:] if word[0] == " " and len(word) > 1 else word
        kinds = {unicodedata.category(x)[0] if unicodedata.category(x)[0] in "LN" else "other" for x in body}
        assert len(kinds) == 1 or word[0] == "'"


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def naive(counts, merges, ties):
    """Count all pairs of all words anew for each merge."""
    parts, tokens, learned = [list(word) for word in counts], [bytes([byte]) for byte in range(256)], []
    while len(learned) < merges:
        total = {}
        for part, times in zip(parts, counts.values(), strict=True):
            for pair in zip(part, part[1:], strict=False):
                total[pair] = total.get(pair, 0) + times
        if not total:
            break
        most = max(total.values())
        best = [pair for pair, count in total.items() if count == most]
        pair = min(best) if ties == "lowest" else max(best, key=lambda p: (tokens[p[0]], tokens[p[1]]))
        learned.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        for k, part in enumerate(parts):
            merged, i = [], 0
            while i < len(part):
                if tuple(part[i : i + 2]) == pair:
                    merged.append(len(tokens) - 1)
                    i += 2
                else:
                    merged.append(part[i])
                    i += 1
            parts[k] = merged
    return learned


def test_the_first_merges_of_the_paper_by_hand():
    """newest and widest give es (9 times), then est, then lo and low: the words of Sennrich et al. 2016, with a space before"""
    counts = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    spelled_out = lambda ties: [  # noqa: E731
        tokens[a] + tokens[b] for tokens in [made(learn(counts, 6, ties=ties))] for a, b in learn(counts, 6, ties=ties)
    ]
    assert spelled_out("greatest") == [b"st", b"est", b"ow", b"low", b"west", b"ne"]
    assert spelled_out("lowest") == [b"es", b"est", b"lo", b"low", b"ew", b"new"]


def made(merges):
    tokens = [bytes([byte]) for byte in range(256)]
    for a, b in merges:
        tokens.append(tokens[a] + tokens[b])
    return tokens


@pytest.mark.parametrize("ties", TIES)
@given(counts=st.dictionaries(st.text("abc", min_size=1, max_size=9).map(str.encode), st.integers(1, 5), max_size=8))
def test_merges_are_those_of_the_naive_trainer(ties, counts):
    assert learn(counts, 12, ties=ties) == naive(counts, 12, ties)


@pytest.mark.parametrize("ties", TIES)
def test_of_a_real_text_too(ties):
    text = " ".join(part.__doc__ or "" for part in (json, unicodedata, np, pytest, Tokenizer, BPETokenizer))
    counts = {}
    for word in words(text):
        counts[word.encode()] = counts.get(word.encode(), 0) + 1
    assert learn(counts, 150, ties=ties) == naive(counts, 150, ties)


def test_runs_of_one_letter_are_merged_from_the_left():
    assert learn({b"aaaa": 1, b"aaa": 2}, 3) == naive({b"aaaa": 1, b"aaa": 2}, 3, "lowest")
    (first, *_) = learn({b"aaaaa": 1}, 1)
    assert first == (97, 97)
    tokenizer = BPETokenizer.train("aaaaa", 257)
    assert [tokenizer.tokens[i] for i in tokenizer.encode("aaaaa")] == [b"aa", b"aa", b"a"]


def test_nothing_is_merged_where_nothing_is_left():
    assert learn({b"ab": 3}, 100) == [(97, 98)] and learn({}, 5) == []
    assert BPETokenizer.train("ab ab", 1000).vocab_size == 258  # "ab" and " ab"


# ---------------------------------------------------------------------------------------------------------------------
# Encoding
# ---------------------------------------------------------------------------------------------------------------------

TRAINED = BPETokenizer.train(TEXT, 273, special=["<|endoftext|>", "<|end|>"])


def slowly(tokenizer, text):
    """Each merge, in the order in which they were learned, on every word."""
    found = []
    for word in words(text):
        part = [bytes([byte]) for byte in word.encode("utf-8", "surrogatepass")]
        for a, b in tokenizer.merges:
            first, second, i = tokenizer.tokens[a], tokenizer.tokens[b], 0
            while i + 1 < len(part):
                if part[i] == first and part[i + 1] == second:
                    part[i : i + 2] = [first + second]
                i += 1
        found += [tokenizer.tokens.index(token) for token in part]
    return found


@given(st.one_of(ANY_TEXT, st.text("lowernsti dw", max_size=60)))
def test_any_text_comes_back_and_is_encoded_as_by_one_merge_after_the_other(text):
    ids = TRAINED.encode(text)
    assert ids.dtype == np.int64 and TRAINED.decode(ids) == text
    assert ids.tolist() == slowly(TRAINED, text)
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text
    assert len(ByteTokenizer().encode(text)) == len(text.encode("utf-8", "surrogatepass"))


@given(st.lists(st.integers(0, 272), max_size=30))
def test_any_tokens_become_a_text(ids):
    assert isinstance(TRAINED.decode(np.array(ids, np.int64)), str)
    assert isinstance(ByteTokenizer().decode(np.array(ids, np.int64) % 256), str)


def test_bytes_that_are_no_text_are_shown_as_such():
    assert ByteTokenizer().decode(np.array([0x61, 0xFF, 0x62])) == "a\ufffdb"
    assert ByteTokenizer().decode(np.array([0xE2, 0x82])) == "\ufffd"


def test_special_tokens_only_where_they_are_asked_for():
    text = "low<|endoftext|>new<|end|>"
    plain = TRAINED.encode(text)
    assert plain.max() < 271 and TRAINED.decode(plain) == text
    all_ = TRAINED.encode(text, special=True)
    assert [i for i in all_ if i >= 271] == [271, 272] and TRAINED.decode(all_) == text
    one = TRAINED.encode(text, special=["<|end|>"])
    assert one[-1] == 272 and (one < 271).sum() == len(one) - 1 and TRAINED.decode(one) == text
    with pytest.raises(TokenError, match=r"expected names of \['<\|endoftext\|>', '<\|end\|>'\], got '<pad>'"):
        TRAINED.encode(text, special=["<pad>"])


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def test_a_letter_for_each_byte():
    assert len(set(LETTERS)) == 256 and LETTERS[ord("A")] == "A"
    assert LETTERS[ord(" ")] == "Ġ" and LETTERS[ord("\n")] == "Ċ" and LETTERS[0] == "Ā" and LETTERS[0xAD] == "\u0143"
    assert spelled(" é\n".encode()) == "ĠÃ©Ċ" and unspelled("ĠÃ©Ċ") == " é\n".encode() and unspelled("é日") is None


def test_saved_in_gpt2s_files_and_read_again(tmp_path):
    TRAINED.save(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#version: 0.2" and lines[1] == "e s" and "Ġ n" in lines or "Ġ l" in lines
    assert vocabulary["a"] == 97 and vocabulary["<|end|>"] == 272 and len(vocabulary) == 273
    for again in (BPETokenizer.load(tmp_path), Tokenizer.from_dict(json.loads(json.dumps(TRAINED.to_dict())))):
        assert again.tokens == TRAINED.tokens and again.merges == TRAINED.merges and again.special == TRAINED.special
        assert again.encode(TEXT).tolist() == TRAINED.encode(TEXT).tolist()
    assert isinstance(Tokenizer.from_dict(ByteTokenizer().to_dict()), ByteTokenizer)


def test_numbers_need_not_be_those_of_the_order_in_which_merges_were_learned(tmp_path):
    """GPT-2's bytes are numbered as its letters are sorted, from "!" on"""
    order = sorted(range(256), key=lambda byte: LETTERS[byte])
    vocabulary = {LETTERS[byte]: i for i, byte in enumerate(order)} | {"lo": 257, "low": 256, "<|endoftext|>": 258}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl o\nlo w\n", encoding="utf-8")
    tokenizer = BPETokenizer.load(tmp_path)
    assert tokenizer.encode("low!").tolist() == [256, 0] and tokenizer.special == {"<|endoftext|>": 258}
    assert tokenizer.decode(np.array([256, 258, 0])) == "low<|endoftext|>!"


@pytest.mark.parametrize(
    ("vocab", "merges", "says"),
    [
        ("{", "", "vocab.json: expected JSON"),
        ('{"a": 1}', "", "expected tokens, each with a number of its own from 0"),
        ('{"a": 0, "b": "1"}', "", "expected tokens, each with a number of its own from 0"),
        ('{"a": 0}', "", "expected all 256 bytes, the byte 0x00 is missing"),
        (None, "a\n", "merges.txt, line 1: expected two tokens with a space between, got 'a'"),
        (None, "a b\n", "merges.txt, line 1: the token 'ab' is not in vocab.json"),
        (None, None, "merges.txt: cannot be read"),
    ],
)
def test_files_that_are_none_get_a_sentence(vocab, merges, says, tmp_path):
    vocab = json.dumps({letter: i for i, letter in enumerate(LETTERS)}) if vocab is None else vocab
    (tmp_path / "vocab.json").write_text(vocab, encoding="utf-8")
    if merges is not None:
        (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    with pytest.raises(TokenError) as caught:
        BPETokenizer.load(tmp_path)
    assert says in str(caught.value)


BYTES = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: BPETokenizer([*BYTES, b"ab"], [(97, 99)]), "merge 0: expected two tokens that make up a third"),
        (lambda: BPETokenizer([*BYTES, b"ab"], [(97, 98), (97, 98)]), "merge 1: expected two tokens"),
        (lambda: BPETokenizer([*BYTES, b"ab"], [(97, 400)]), "merge 0: expected two tokens"),
        (lambda: BPETokenizer([*BYTES, b"a"], []), "expected 257 different tokens, got two that are alike"),
        (lambda: BPETokenizer([*BYTES, b""], [], {"<a>": 97}), "special token '<a>': expected a number of its own"),
        (lambda: BPETokenizer.train(TEXT, 100), "size: expected at least 256, 256 bytes and 0 special tokens, got 100"),
        (lambda: BPETokenizer.train(TEXT, 300, ties="first"), "ties: expected lowest or greatest, got 'first'"),
        (lambda: TRAINED.encode(3), "encode: expected a str, got int"),
        (lambda: TRAINED.decode(np.array([273])), "expected tokens in 0 … 272, got 273 at position 0"),
        (lambda: Tokenizer.from_dict({"kind": "bpe", "tokens": 3}), "expected tokens, merges and special tokens"),
        (lambda: Tokenizer.from_dict({"kind": "bpe", "tokens": ["日"], "merges": [], "special": {}}), "stands for no byte"),
    ],
)
def test_what_is_no_tokenizer_gets_a_sentence(build, says):
    with pytest.raises(TokenError) as caught:
        build()
    assert says in str(caught.value)
