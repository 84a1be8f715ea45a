"""Pieces of words: a vocabulary of fixed size that spells every sentence of a language, and joins it again.

    "Ein Hund rennt ."  ->  ▁Ein ▁Hund ▁ren nt ▁.  ->  numbers  ->  "Ein Hund rennt ."

Whole words would take two tables of about 5,000 for Multi30k, with 1 word in 20 of the test set unknown. 3,000 pieces
spell all of it in sentences that are 12% longer (English), and the output layer, the widest of a small translator, has
3,000 neurons. Nor do pieces ask how a language parts its words, or how the words of a translation are put together, so
that BLEU is that of plain text.

The pieces are merged by byte pair encoding (Sennrich et al., 2016), by sentencepiece, on one thread and without chance:
the same text gives the same pieces. Text stays as it is written but for runs of spaces, which count as one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.optional import require

__all__ = ["BOS", "EOS", "PAD", "Pieces"]

PAD, BOS, EOS, _UNKNOWN = 0, 1, 2, 3

_LONGEST = 1 << 20  # bytes of a line, as in `data.lines`; sentencepiece would leave out what is longer than 4 KiB


class Pieces:
    """The pieces of one language.

    Args:
        name: of the language in messages: "source" or "target".
        sentences: of the training part.
        size: pieces at most, the four special ones (padding, begin, end, unknown character) and all characters
            included; a small text has fewer.

    Raises:
        UserError: sentencepiece is not installed, or the size is too small for the characters of the text.

    """

    def __init__(self, name: str, sentences: Iterable[str], size: int) -> None:
        require("sentencepiece", "translation needs sentencepiece", "translation")
        import sentencepiece

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                hard_vocab_limit=False,
                pad_id=PAD,
                bos_id=BOS,
                eos_id=EOS,
                unk_id=_UNKNOWN,
                normalization_rule_name="identity",
                max_sentence_length=_LONGEST,
                num_threads=1,
                minloglevel=3,  # its progress and its errors, which come as exceptions, too
            )
        except RuntimeError as error:
            reason = "is smaller than its characters" if "required_chars" in str(error) else f"does not fit: {error}"
            raise UserError(f"a vocabulary of {size} for the {name} sentences {reason}: take a larger one") from None
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    def __len__(self) -> int:
        """How many pieces there are, the special ones included."""
        return len(self._processor)

    def encode(self, sentence: str) -> list[int]:
        """Return the numbers of a sentence's pieces, without begin and end; of nothing, an unknown character's."""
        return list(self._processor.encode(sentence)) or [_UNKNOWN]

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the sentence; an unknown character becomes ⁇, special pieces nothing."""
        return str(self._processor.decode(list(numbers)))
