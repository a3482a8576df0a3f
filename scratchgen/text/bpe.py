r"""Byte-pair encoding: text as bytes, of which the pairs that occur most often become tokens of their own, one after the other.

    training     begin with the 256 bytes; again and again give the most frequent pair of neighbouring tokens a number of its
                 own, the next one, and put it wherever the pair stands
    encoding     the same merges on another text, in the order in which they were learned: of all pairs that a text has now the
                 one that was learned first is merged, until none is left that was learned

Text is cut into words first, and no pair reaches from one word into the next. The cut is GPT-2's: contractions, runs of
letters, of digits or of other signs, each with the space before it, and runs of white space, of which the last one is left to
the word that follows:

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+                                       (1)

with the letters \p{L}, numbers \p{N} and white space \s of Unicode. What is read and written is GPT-2's pair of files:
`vocab.json`, token → number, and `merges.txt`, a merge a line, in which a byte stands as a letter (`LETTERS`), since neither
file can hold all bytes as they are.

Any text is encoded and comes back, a lone surrogate included, since whatever is no learned pair stays bytes. Bytes that are no
text, of which a model may make some, become � when decoded.

Source: Sennrich et al. 2016, arXiv:1508.07909; of bytes, Radford et al. 2019 (GPT-2), §2.2.
"""

from __future__ import annotations

import heapq
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.text.tokenizers import TokenError, Tokenizer

Pair = tuple[int, int]
KEPT_WORDS = 1 << 20  # words whose tokens are remembered
TIES = ("lowest", "greatest")


def to_bytes(text: str) -> bytes:
    """UTF-8, in which a lone surrogate has three bytes like any other code point of its size."""
    return text.encode("utf-8", "surrogatepass")


def to_text(data: bytes) -> str:
    """The inverse; where there is none, bytes that are no UTF-8 become �."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------


@lru_cache(1)
def _pattern() -> re.Pattern[str]:
    """(1), in which Python's `re` knows neither \\p{L} nor \\p{N}, and takes four control characters for white space."""
    ranges: dict[str, list[list[int]]] = {"L": [], "N": []}
    for point in range(sys.maxunicode + 1):
        of = ranges.get(unicodedata.category(chr(point))[0])
        if of is None:
            continue
        if of and of[-1][1] == point - 1:
            of[-1][1] = point
        else:
            of.append([point, point])
    letter, number = ("".join(f"{chr(a)}-{chr(b)}" for a, b in ranges[kind]) for kind in "LN")
    space = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    return re.compile(
        rf"'(?:s|t|re|ve|m|ll|d)| ?[{letter}]+| ?[{number}]+| ?[^{space}{letter}{number}]+|[{space}]+(?![^{space}])|[{space}]+"
    )


def words(text: str) -> list[str]:
    """The words of a text by (1), which together are the text."""
    return _pattern().findall(text)


# ---------------------------------------------------------------------------------------------------------------------
# Bytes as letters, as both files have them
# ---------------------------------------------------------------------------------------------------------------------


def _letters() -> list[str]:
    """A letter for each byte: printable ones of Latin-1 themselves, the others, in turn, those from U+0100 on."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


LETTERS = _letters()
_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


def spelled(token: bytes) -> str:
    """A token in letters."""
    return "".join(LETTERS[byte] for byte in token)


def unspelled(letters: str) -> bytes | None:
    """The token that is spelled so; None where a letter stands for no byte."""
    return bytes(_BYTES[x] for x in letters) if all(x in _BYTES for x in letters) else None


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class _Reversed:
    """Compares the other way round: a heap gives the least."""

    __slots__ = ("of",)

    def __init__(self, of: Any) -> None:
        self.of = of

    def __lt__(self, other: _Reversed) -> bool:
        return other.of < self.of


def learn(counts: Mapping[bytes, int], merges: int, *, ties: str = "lowest") -> list[Pair]:
    """The merges that words, each with its count, give: at most so many, fewer where every word is one token.

    ties: which of pairs that are equally frequent comes first: "lowest", the one of the lowest first number, then of the lowest
    second; or "greatest", the one whose bytes come last in alphabetical order, first token before second.

    Only what a merge touches is counted anew: the words that hold the pair, by the table of where each pair stands.
    """
    if ties not in TIES:
        raise TokenError(f"ties: expected {' or '.join(TIES)}, got {ties!r}.")
    parts = [list(word) for word in counts]  # the tokens of each word
    times = list(counts.values())
    tokens = [bytes([byte]) for byte in range(256)]
    total: Counter[Pair] = Counter()
    holding: defaultdict[Pair, set[int]] = defaultdict(set)
    for i, part in enumerate(parts):
        for pair in zip(part, part[1:], strict=False):
            total[pair] += times[i]
            holding[pair].add(i)

    def entry(pair: Pair) -> tuple[int, Any, Pair]:
        order = pair if ties == "lowest" else _Reversed((tokens[pair[0]], tokens[pair[1]]))
        return -total[pair], order, pair

    heap = [entry(pair) for pair in total]
    heapq.heapify(heap)
    learned: list[Pair] = []
    while heap and len(learned) < merges:
        count, _, pair = heapq.heappop(heap)
        if -count != total[pair] or not count:  # counted anew since, and pushed again
            continue
        new = len(tokens)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        learned.append(pair)
        changed: set[Pair] = set()
        for i in holding.pop(pair):
            old, merged = parts[i], _merged(parts[i], pair, new)
            before, after = (Counter(zip(part, part[1:], strict=False)) for part in (old, merged))
            for each in before.keys() | after.keys():
                difference = after[each] - before[each]
                if difference:
                    total[each] += difference * times[i]
                    changed.add(each)
                if not after[each]:
                    holding[each].discard(i)
                else:
                    holding[each].add(i)
            parts[i] = merged
        for each in changed:
            if total[each] > 0:
                heapq.heappush(heap, entry(each))
    return learned


def _merged(part: Sequence[int], pair: Pair, new: int) -> list[int]:
    """The tokens with each occurrence of the pair replaced, from the left."""
    first, second = pair
    found: list[int] = []
    i, last = 0, len(part) - 1
    while i <= last:
        if i < last and part[i] == first and part[i + 1] == second:
            found.append(new)
            i += 2
        else:
            found.append(part[i])
            i += 1
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizers
# ---------------------------------------------------------------------------------------------------------------------


class ByteTokenizer(Tokenizer):
    """One token a byte of UTF-8: the text as a computer has it, with nothing learned."""

    kind = "bytes"
    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(to_bytes(_require_text(text)), np.uint8).astype(np.int64)

    def decode(self, ids: np.ndarray) -> str:
        return to_text(self._check_ids(ids).astype(np.uint8).tobytes())

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def _from_dict(cls, state: dict[str, Any]) -> ByteTokenizer:
        return cls()


class BPETokenizer(Tokenizer):
    """Bytes, merged pairs of tokens, and special tokens, such as <|endoftext|>, that no text turns into unless it is asked to.

    tokens: the bytes of each token, by number;  merges: pairs of numbers, the one learned first standing first.
    """

    kind = "bpe"

    def __init__(self, tokens: Sequence[bytes], merges: Iterable[Pair], special: Mapping[str, int] | None = None) -> None:
        """special: name → number; their places in `tokens` hold b"".

        Raises TokenError where a byte is missing, a merge names no two tokens that make up a third, or a number stands for two.
        """
        self.tokens, self.special = list(tokens), dict(special or {})
        numbers = {token: i for i, token in enumerate(self.tokens) if token}
        for name, i in self.special.items():
            if not name or not 0 <= i < len(self.tokens) or self.tokens[i]:
                raise TokenError(f"special token {name!r}: expected a number of its own below {len(self.tokens)}, got {i}.")
        if len(numbers) + len(set(self.special.values())) != len(self.tokens) or len(set(self.special.values())) != len(
            self.special
        ):
            raise TokenError(f"vocabulary: expected {len(self.tokens)} different tokens, got two that are alike.")
        missing = [byte for byte in range(256) if bytes([byte]) not in numbers]
        if missing:
            raise TokenError(f"vocabulary: expected all 256 bytes, the byte 0x{missing[0]:02x} is missing.")
        self._of_byte = [numbers[bytes([byte])] for byte in range(256)]
        self._rank: dict[Pair, tuple[int, int]] = {}  # pair → its rank, and the number of what it becomes
        self.merges: list[Pair] = []
        for rank, (a, b) in enumerate(merges):
            made = self.tokens[a] + self.tokens[b] if 0 <= min(a, b) <= max(a, b) < len(self.tokens) else b""
            if made not in numbers or (a, b) in self._rank or not (self.tokens[a] and self.tokens[b]):
                raise TokenError(f"merge {rank}: expected two tokens that make up a third, each pair once, got {a} and {b}.")
            self._rank[a, b] = rank, numbers[made]
            self.merges.append((a, b))
        self._known: dict[str, tuple[int, ...]] = {}

    @classmethod
    def train(cls, texts: str | Iterable[str], size: int, *, special: Sequence[str] = (), ties: str = "lowest") -> BPETokenizer:
        """A vocabulary of `size` tokens, the 256 bytes and the special ones included, learned from texts.

        Fewer where the texts have no more pairs. ties: as in `learn`. Raises TokenError for a size that is too small.
        """
        least = 256 + len(special)
        if size < least:
            raise TokenError(f"size: expected at least {least}, 256 bytes and {len(special)} special tokens, got {size}.")
        counts: Counter[str] = Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            counts.update(words(text))
        merges = learn({to_bytes(word): count for word, count in counts.items()}, size - least, ties=ties)
        tokens = [bytes([byte]) for byte in range(256)]
        for a, b in merges:
            tokens.append(tokens[a] + tokens[b])
        names = {name: len(tokens) + i for i, name in enumerate(special)}
        return cls([*tokens, *(b"" for _ in special)], merges, names)

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str, *, special: bool | Collection[str] = False) -> np.ndarray:
        """text → int64 (n,). special: the special tokens whose names, where they stand in the text, become their numbers.

        With False none does, so that a text that merely mentions one cannot end another; with True all do.
        Raises TokenError for a name that is none.
        """
        _require_text(text)
        asked = set(self.special) if special is True else set(special or ())
        for name in sorted(asked - set(self.special)):
            raise TokenError(f"special: expected names of {sorted(self.special)}, got {name!r}.")
        found: list[int] = []
        if not asked:
            self._encode(text, found)
        else:
            names = sorted(asked, key=len, reverse=True)  # the longest that fits
            for part in re.split("(" + "|".join(map(re.escape, names)) + ")", text):
                if part in asked:
                    found.append(self.special[part])
                else:
                    self._encode(part, found)
        return np.array(found, np.int64)

    def _encode(self, text: str, found: list[int]) -> None:
        known = self._known
        for word in words(text):
            ids = known.get(word)
            if ids is None:
                ids = tuple(self._of_word(to_bytes(word)))
                if len(known) < KEPT_WORDS:
                    known[word] = ids
            found += ids

    def _of_word(self, word: bytes) -> list[int]:
        """The tokens of a word: of its pairs the one learned first is merged, until none was learned."""
        part = [self._of_byte[byte] for byte in word]
        while len(part) > 1:
            rank, pair = min((self._rank.get(p, (sys.maxsize,))[0], p) for p in zip(part, part[1:], strict=False))
            if rank == sys.maxsize:
                break
            part = _merged(part, pair, self._rank[pair][1])
        return part

    def decode(self, ids: np.ndarray) -> str:
        return to_text(b"".join(self.pieces(ids)))

    def pieces(self, ids: np.ndarray) -> list[bytes]:
        """The bytes of each token; of a special one, its name."""
        names = {i: to_bytes(name) for name, i in self.special.items()}
        return [self.tokens[i] or names[i] for i in self._check_ids(ids).tolist()]

    # Saved: as JSON values, and as GPT-2's two files

    def to_dict(self) -> dict[str, Any]:
        tokens = [spelled(token) for token in self.tokens]
        return {"kind": self.kind, "tokens": tokens, "merges": [list(pair) for pair in self.merges], "special": self.special}

    @classmethod
    def _from_dict(cls, state: dict[str, Any]) -> BPETokenizer:
        try:
            tokens = [unspelled(letters) for letters in state["tokens"]]
            merges = [(int(a), int(b)) for a, b in state["merges"]]
            special = {str(name): int(i) for name, i in state["special"].items()}
            if any(token is None for token in tokens):
                raise TokenError("tokenizer state: a token has a letter that stands for no byte.")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, TokenError):
                raise
            raise TokenError("tokenizer state: expected tokens, merges and special tokens of a bpe tokenizer.") from error
        return cls(tokens, merges, special)

    def save(self, folder: str | Path) -> None:
        """Write `vocab.json` and `merges.txt` into a folder, which is made where there is none."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = {i: name for name, i in self.special.items()}
        vocabulary = {names.get(i) or spelled(token): i for i, token in enumerate(self.tokens)}
        lines = [" ".join(spelled(self.tokens[i]) for i in pair) for pair in self.merges]
        (folder / VOCABULARY).write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        (folder / MERGES).write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> BPETokenizer:
        """The tokenizer of a folder's `vocab.json` and `merges.txt`. What no merge makes, and is no byte, is a special token.

        Raises TokenError: a file that is missing or is not what it should be, with its line.
        """
        folder = Path(folder)
        vocabulary = _read_vocabulary(folder / VOCABULARY)
        pairs = list(_read_merges(folder / MERGES))
        made = {a + b for _, a, b in pairs} | set(LETTERS)
        tokens, special = [b""] * len(vocabulary), {}
        for name, i in vocabulary.items():
            token = unspelled(name) if name in made else None
            if token is None:
                special[name] = i
            else:
                tokens[i] = token
        merges = []
        for line, a, b in pairs:
            for letters in (a, b, a + b):
                if letters not in vocabulary:
                    raise TokenError(f"{folder / MERGES}, line {line}: the token {letters!r} is not in {VOCABULARY}.")
            merges.append((vocabulary[a], vocabulary[b]))
        return cls(tokens, merges, special)


VOCABULARY, MERGES = "vocab.json", "merges.txt"


def _require_text(text: Any) -> str:
    if not isinstance(text, str):
        raise TokenError(f"encode: expected a str, got {type(text).__name__}.")
    return text


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise TokenError(f"{path}: expected UTF-8 text, and it is not.") from error


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        found = json.loads(_content(path))
    except json.JSONDecodeError as error:
        raise TokenError(f"{path}: expected JSON, {error.msg} in line {error.lineno}.") from error
    if not isinstance(found, dict) or sorted(found.values(), key=lambda i: (not isinstance(i, int), i)) != [*range(len(found))]:
        raise TokenError(f"{path}: expected tokens, each with a number of its own from 0 to their count less one.")
    return found


def _read_merges(path: Path) -> Iterator[tuple[int, str, str]]:
    """Lines of two tokens, with their numbers; the first may say a version."""
    for number, line in enumerate(_content(path).split("\n"), 1):
        if not line or number == 1 and line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise TokenError(f"{path}, line {number}: expected two tokens with a space between, got {line[:60]!r}.")
        yield number, parts[0], parts[1]
