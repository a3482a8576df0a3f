"""Tokenizers by name: learned from data, kept in a folder, in a run, or asked for by a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scratchgen import data
from scratchgen.text import BPETokenizer, ByteTokenizer, TokenError, Tokenizer, show
from scratchgen.text.bpe import VOCABULARY
from scratchgen.training.folder import CHECKPOINT, TrainingError, write_whole
from scratchgen.training.runs import open_run


def find(where: str) -> Tokenizer:
    """The tokenizer of that name ("bytes"), of a folder with `vocab.json` and `merges.txt`, or of the run in a folder.

    Raises TokenError or TrainingError where there is none.
    """
    folder = Path(where)
    if where == ByteTokenizer.kind and not folder.exists():
        return ByteTokenizer()
    if (folder / VOCABULARY).exists():
        return BPETokenizer.load(folder)
    if (folder / CHECKPOINT).exists():
        metadata = open_run(folder).metadata
        found = metadata if isinstance(metadata, Tokenizer) else dict(metadata).get("tokenizer")
        if isinstance(found, Tokenizer):
            return found
        raise TrainingError(f"{where}: the run there learned from no text, so it has no tokenizer.")
    raise TrainingError(
        f"{where}: expected a folder with {VOCABULARY} and merges.txt, the folder of a run that learned from text, or bytes."
    )


def learn(name_or_path: str, size: int, folder: Path, *, special: Sequence[str] = (), ties: str = "lowest") -> str:
    """Learn a byte-pair vocabulary from a text, and write GPT-2's two files into a folder. Returns a sentence about it."""
    text = data.load(name_or_path)
    if not isinstance(text, data.Text):
        raise TrainingError(f"{name_or_path}: a tokenizer learns from text, and this is {text.about}.")
    tokenizer = BPETokenizer.train(text.text, size, special=special, ties=ties)
    tokenizer.save(folder)
    few = "" if tokenizer.vocab_size == size else f", not {size:,}, since no pairs are left"
    share = len(text.text) / len(tokenizer.encode(text.text))
    return f"{folder}: {tokenizer.vocab_size:,} tokens{few}, {share:.2f} characters each in the mean of the text."


def numbers(text: str) -> np.ndarray:
    """Whole numbers with anything but digits between. Raises TokenError for what is none."""
    try:
        return np.array([int(word) for word in text.replace(",", " ").split()], np.int64)
    except ValueError as error:
        raise TokenError(f"decode: expected whole numbers with spaces between, got {text[:60]!r}.") from error


def shown(tokenizer: Tokenizer, text: str, *, colours: bool) -> str:
    """The text in its tokens' colours, or with bars between its tokens."""
    ids = tokenizer.encode(text)
    tokens = show.pieces(tokenizer, ids)
    return f"{(show.terminal if colours else show.plain)(tokens)}\n{len(ids):,} tokens of {tokenizer.vocab_size:,}"


def write_page(tokenizer: Tokenizer, text: str, path: Path) -> None:
    """The same as a page of its own."""
    ids = tokenizer.encode(text)
    write_whole(path, show.page(show.pieces(tokenizer, ids), ids, "Text as tokens"))
