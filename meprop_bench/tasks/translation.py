"""Translation: the papers' sequence-to-sequence model, Multi30k German to English in place of NIST and IWSLT.

    example    a sentence and its translation as pieces of words, 3,000 for each language
               "Ein Hund rennt ."  ->  ▁Ein ▁Hund ▁ren nt ▁.  ->  numbers  ->  "Ein Hund rennt ."
    training   teacher forcing: the mean negative log-likelihood of the target's pieces, given those before
    metric     BLEU (Papineni et al., 2002) by sacrebleu at its defaults: plain text with case, "13a" tokens; of the
               translations that beam search finds, 5 wide, of at most 10 pieces and 2 for each of the longest of the 64
               sentences, of like lengths, that are translated together

TKDE, section 3.3.3: three layers in encoder and decoder, the encoder bidirectional, Luong's attention, B = 64; every
LSTM is sparsified, embeddings, attention and output are not. The paper does not say how large the layers are, only that
k is 6.25% of them: 512 here, k = 32. Its dropout is not said either and is 0 here; its optimizer is taken to be Adam.

The paper sparsifies encoder and decoder alternately, an epoch each: `tasks.algorithm.Alternation`, which goes along
with a method; without it both are sparsified all the time. Its table is without length normalisation, as is the default
here; `length_penalty` is the α of Wu et al. (see `models.beam`).

Whole words would take two tables of about 5,000 for Multi30k, with 1 word in 20 of the test set unknown. 3,000 pieces
spell all of it in sentences that are 12% longer (English), and the output layer, the widest of a small translator, has
3,000 neurons; and BLEU is that of plain text. The pieces are merged by byte pair encoding (Sennrich et al., 2016), by
sentencepiece, on one thread and without chance: the same text gives the same pieces. Text stays as it is written but
for runs of spaces, which count as one.

`toy-translation` is the same on sentences that a grammar makes up (`data.parallel`), for machines without Multi30k.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from meprop_bench.data.parallel import SentencePair, load_multi30k, made_up_corpus, read_corpus
from meprop_bench.errors import UserError
from meprop_bench.models.translator import Translator
from meprop_bench.optional import require
from meprop_bench.tasks.checks import check_examples, check_model, on_device
from meprop_bench.tasks.task import Split, Task
from meprop_bench.tasks.text import bucketed, in_order_of_length, paths

__all__ = ["BOS", "EOS", "PAD", "Pieces", "ToyTranslation", "Translation"]

PAD, BOS, EOS, _UNKNOWN = 0, 1, 2, 3

_LONGEST = 1 << 20  # bytes of a line, as in `data.content`; sentencepiece would leave out what is longer than 4 KiB


class Pieces:
    """The pieces of one language, "source" or "target" in messages, made of the sentences of its training part.

    `size` is how many there are at most, the four special ones (padding, begin, end, unknown character) and all
    characters included; a small text has fewer. `UserError`: sentencepiece is not installed, or the size is too small
    for the characters of the text.
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


_EVALUATED = 64  # sentences at a time, `beam` rows each
_FILES = ("train source", "train target", "dev source", "dev target", "test source", "test target")

_Batch = tuple[Tensor, Tensor, Tensor]
"""Source pieces (B, S), their lengths (B,) on the CPU, target pieces (B, T) from BOS to EOS."""


class Translation(Task):
    """Translation; `files` are source and target of train, dev and test; else it is of Multi30k."""

    name = "translation"
    metric = "BLEU"
    kinds = (nn.LSTM,)

    def __init__(
        self,
        *,
        batch: int = 64,  # pairs
        hidden: int = 512,  # of the decoder and of both directions of the encoder together; even
        embedding: int | None = None,  # entries of a piece's vector; None for as many as hidden
        layers: int = 3,  # of the encoder and of the decoder
        dropout: float = 0.0,  # of embeddings, between layers and before the output
        vocabulary: int = 3000,  # pieces of each language at most
        beam: int = 5,  # hypotheses of the beam search; 1 is greedy
        length_penalty: float = 0.0,  # α of its length normalisation, 0 for none
        examples: int | None = None,
        files: str | None = None,
        device: str = "cpu",
    ) -> None:
        embedding = hidden if embedding is None else embedding
        check_model(batch=batch, hidden=hidden, embedding=embedding, layers=layers, vocabulary=vocabulary, beam=beam)
        if hidden % 2:
            raise UserError(f"hidden must be even, half of it for each direction of the encoder, not {hidden}")
        check_model(dropout=dropout)
        if not (length_penalty >= 0 and math.isfinite(length_penalty)):
            raise UserError(f"length-penalty must be a number of at least 0, not {length_penalty}")
        self.device = on_device(device)
        require("sacrebleu", "translation needs sacrebleu", "translation")
        from sacrebleu.metrics.bleu import BLEU

        self._bleu = BLEU()
        if files is None:
            corpus = made_up_corpus() if self.made_up else load_multi30k()
        else:
            corpus = read_corpus(files, *paths(files, _FILES))
        self.examples = check_examples(examples, len(corpus.train), f"pairs of {corpus.name}")
        self.batch, corpus = batch, replace(corpus, train=corpus.train[: self.examples])
        self._model: dict[str, Any] = {"hidden": hidden, "embedding": embedding, "layers": layers, "dropout": dropout}
        self._search: dict[str, Any] = {"beam": beam, "length_penalty": length_penalty}
        data = {"vocabulary": vocabulary, "examples": self.examples, "files": files, "device": str(self.device)}
        self.options = {"batch": batch, **self._model, **self._search, **data}
        self.data_published = corpus.published
        self.notes = (*corpus.notes, f"BLEU by sacrebleu {version('sacrebleu')}: case:mixed, tok:13a, smooth:exp")
        self.source = Pieces("source", (pair.source for pair in corpus.train), vocabulary)
        self.target = Pieces("target", (pair.target for pair in corpus.train), vocabulary)
        self._train = [self._encode(pair) for pair in corpus.train]
        self._lengths = [len(source) + len(target) for source, target in self._train]
        self._parts: Mapping[Split, tuple[SentencePair, ...]] = {"dev": corpus.dev, "test": corpus.test}

    def build(self, seed: int) -> nn.Module:
        """Return the translator."""
        sizes = (len(self.source), len(self.target))
        return Translator(*sizes, **self._model, pad=PAD, bos=BOS, eos=EOS, seed=seed).to(self.device)

    def epoch(self, seed: int, epoch: int) -> Iterator[_Batch]:
        """Yield the batches of one epoch, the pairs of each of like lengths."""
        for places in bucketed(self._lengths, self.batch, seed=seed, epoch=epoch):
            targets = [self._train[place][1] for place in places]
            rows = pad_sequence(targets, batch_first=True, padding_value=PAD).to(self.device)
            yield (*self._pad([self._train[place][0] for place in places]), rows)

    def loss(self, model: nn.Module, batch: _Batch) -> Tensor:
        """Return the mean negative log-likelihood of a target's piece, EOS included."""
        assert isinstance(model, Translator)
        return model.loss(*batch)

    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Return BLEU."""
        pairs = self._parts[split]
        found = self.translate(model, [pair.source for pair in pairs])
        return float(self._bleu.corpus_score(found, [[pair.target for pair in pairs]]).score)

    def translate(self, model: nn.Module, sentences: Sequence[str]) -> list[str]:
        """Return the translations that beam search finds; the model is put into evaluation mode and back."""
        assert isinstance(model, Translator)
        sources = [torch.tensor(self.source.encode(sentence)) for sentence in sentences]
        found = [""] * len(sentences)
        for places in in_order_of_length([len(source) for source in sources], _EVALUATED):
            rows, lengths = self._pad([sources[place] for place in places])
            hypotheses = model.translate(rows, lengths, max_length=2 * int(lengths.max()) + 10, **self._search)
            for place, hypothesis in zip(places, hypotheses, strict=True):
                found[place] = self.target.decode(hypothesis.tokens)
        return found

    def _encode(self, pair: SentencePair) -> tuple[Tensor, Tensor]:
        target = [BOS, *self.target.encode(pair.target), EOS]
        return torch.tensor(self.source.encode(pair.source)), torch.tensor(target)

    def _pad(self, sources: list[Tensor]) -> tuple[Tensor, Tensor]:
        rows = pad_sequence(sources, batch_first=True, padding_value=PAD).to(self.device)
        return rows, torch.tensor([len(source) for source in sources])


class ToyTranslation(Translation):
    """Translation of sentences that a small grammar makes up."""

    name = "toy-translation"
    made_up = True
