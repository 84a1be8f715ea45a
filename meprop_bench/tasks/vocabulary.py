"""Numbers for words: those of the training part that are frequent enough; 0 for all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

__all__ = ["UNKNOWN", "Vocabulary"]

UNKNOWN = 0


class Vocabulary:
    """A numbering of words, the same for the same words in any order.

    Args:
        words: of the training part.
        least: how often a word must occur to have a number of its own.

    """

    def __init__(self, words: Iterable[str], *, least: int = 1) -> None:
        counts = Counter(words)
        frequent = sorted(
            (word for word, count in counts.items() if count >= least), key=lambda word: (-counts[word], word)
        )
        self.words = (None, *frequent)
        self._numbers = {word: number for number, word in enumerate(frequent, start=1)}

    def __len__(self) -> int:
        """How many numbers there are, that of unknown words included."""
        return len(self.words)

    def __getitem__(self, word: str) -> int:
        """Return the word's number, `UNKNOWN` if it has none."""
        return self._numbers.get(word, UNKNOWN)
