"""The environment variables that the kernels obey, each read and checked here.

    SCRATCHGEN_KERNELS   reference or cpu            the backend that is chosen first; cpu without it
    SCRATCHGEN_THREADS   a whole number from 1       threads of the compiled kernels; one for each core without it
    SCRATCHGEN_SIMD      128, 256 or 512             bits of a vector; the processor's own without it
    SCRATCHGEN_TF32      0 or 1                      products on a GPU round their factors to TF32; 0 without it

An empty variable is none. A variable that says anything else raises SettingError where it is first needed, not at the
import, so that a program can look at all of them (`check`) and answer with a sentence.
"""

from __future__ import annotations

import os


class SettingError(ValueError):
    """An environment variable says what it cannot mean; the message is one sentence."""


def backend() -> str | None:
    """The backend that is wished for, if any."""
    return _read("SCRATCHGEN_KERNELS", ("reference", "cpu"), "reference or cpu")


def threads() -> int | None:
    """How many threads are wished for, if that is said."""
    text = os.environ.get("SCRATCHGEN_THREADS", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= len(text.lstrip("0")) <= 9):
        raise SettingError(f"SCRATCHGEN_THREADS: expected a whole number of at least 1, got {text!r}.")
    return int(text)


def vector_bits() -> int | None:
    """The width of vectors that is forced, if any."""
    text = _read("SCRATCHGEN_SIMD", ("128", "256", "512"), "128, 256 or 512")
    return text and int(text)


def tf32() -> bool:
    """May products on a GPU round their factors to TF32?"""
    return _read("SCRATCHGEN_TF32", ("0", "1"), "0 or 1") == "1"


def check() -> None:
    """Raise SettingError where any of the variables cannot be meant so."""
    for setting in (backend, threads, vector_bits, tf32):
        setting()


def _read(name: str, allowed: tuple[str, ...], says: str) -> str | None:
    text = os.environ.get(name, "")
    if text and text not in allowed:
        raise SettingError(f"{name}: expected {says}, got {text!r}.")
    return text or None
