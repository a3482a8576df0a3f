"""Text as integers, and the rules that choose the next one.

tokenizer = CharTokenizer.train(text)
ids = tokenizer.encode("abc")                       int64 (n,)
next_id = sample(logits, temperature=0.8, top_p=0.95, rng=rng)
"""

from scratchgen.text.bpe import BPETokenizer, ByteTokenizer
from scratchgen.text.sampling import LogitsError, penalised, probabilities, sample
from scratchgen.text.tokenizers import CharTokenizer, TokenError, Tokenizer, WordTokenizer

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "LogitsError",
    "TokenError",
    "Tokenizer",
    "WordTokenizer",
    "probabilities",
    "sample",
]
