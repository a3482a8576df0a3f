"""Tokens as coloured text: where one ends and the next begins, in a terminal and on a page that holds all it shows."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import numpy as np

from scratchgen.text.bpe import BPETokenizer, to_text
from scratchgen.text.tokenizers import Tokenizer

COLOURS = ("#f3d9c9", "#d3e2ea", "#dfe8cf", "#efe3bd", "#e3d5ea")
SHADES = (223, 152, 193, 229, 183)  # the nearest of a terminal's 256 colours


def pieces(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """What each token stands for; bytes that are no text by themselves as \\xe2."""
    if isinstance(tokenizer, BPETokenizer):
        return [_readable(piece) for piece in tokenizer.pieces(ids)]
    if tokenizer.kind == "bytes":
        return [_readable(bytes([i])) for i in ids.tolist()]
    return [tokenizer.decode(ids[i : i + 1]) for i in range(len(ids))]


def _readable(piece: bytes) -> str:
    text = to_text(piece)
    return text if "\ufffd" not in text else "".join(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in piece)


def terminal(tokens: Sequence[str]) -> str:
    """The tokens on coloured ground, one after the other; a line that ends shows where, and no terminal obeys a text."""
    safe = (re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", token) for token in tokens)
    shown = (token.replace("\n", "⏎\n").replace("\t", "→\t") for token in safe)
    return "".join(
        "\n".join(
            f"\x1b[48;5;{SHADES[i % len(SHADES)]}m\x1b[38;5;16m{line}\x1b[0m" if line else "" for line in token.split("\n")
        )
        for i, token in enumerate(shown)
    )


def plain(tokens: Sequence[str]) -> str:
    """The tokens with a bar between, for what shows no colours."""
    return "|".join(tokens)


def page(tokens: Sequence[str], ids: np.ndarray, title: str) -> str:
    """The same as a page; each token tells its number to who points at it."""
    spans = "".join(
        f'<span style="background:{COLOURS[i % len(COLOURS)]}" title="{n}">{_marked(token)}</span>'
        for i, (token, n) in enumerate(zip(tokens, ids.tolist(), strict=True))
    )
    characters = sum(len(token) for token in tokens)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>
body {{ background: #fbfaf6; color: #1d1c1a; font: 17px/1.7 Georgia, serif; max-width: 46rem; margin: 2rem auto; }}
body {{ padding: 0 1rem; }}
h1 {{ font-weight: 500; }} p {{ color: #6d6a63; font: .9rem system-ui, sans-serif; }}
pre {{ font: 15px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
span {{ border-radius: 3px; padding: .12em 0; }} span:hover {{ outline: 2px solid #b5452c; }}
i {{ color: #6d6a63; font-style: normal; }}
</style></head><body><h1>{html.escape(title)}</h1>
<p>{len(ids):,} tokens of {characters / max(1, len(ids)):.2f} characters in the mean. Point at one: its number.</p>
<pre>{spans}</pre></body></html>
"""


def _marked(token: str) -> str:
    text = html.escape(token).encode("utf-8", "backslashreplace").decode()
    return text.replace("\n", "<i>⏎</i>\n").replace("\t", "<i>→</i>\t")
