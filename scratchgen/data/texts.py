"""Text as one string: the data set of it, and its split."""

from __future__ import annotations

from dataclasses import dataclass

from scratchgen.data.checks import DataError


@dataclass(frozen=True)
class Text:
    """One non-empty string."""

    text: str
    name: str = "text"

    def __post_init__(self) -> None:
        if not self.text:
            raise DataError(f"{self.name}: the text is empty; expected at least one character.")

    def __len__(self) -> int:
        return len(self.text)

    def __repr__(self) -> str:
        return f"Text(name={self.name!r}, {len(self):,} characters)"


def cut(text: str, split: str, name: object) -> str:
    """A split of one text: its first nine tenths to learn from, or the rest to test."""
    at = len(text) - len(text) // 10
    part = text[at:] if split == "test" else text[:at]
    if not part:
        raise DataError(
            f"{name}: expected at least {10 if split == 'test' else 1} characters for a {split} split, got {len(text)}."
        )
    return part
