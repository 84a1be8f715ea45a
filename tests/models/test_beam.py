import itertools
import math

import pytest
import torch

from meprop_bench.models.beam import beam_search

BOS, EOS = 1, 2


class Table:
    """A language model over V tokens whose probabilities depend on the sentence and on the last two tokens."""

    def __init__(self, sentences, vocabulary=4, seed=0, sharpness=1.0):
        generator = torch.Generator().manual_seed(seed)
        size = (sentences, vocabulary, vocabulary, vocabulary)
        scores = sharpness * torch.randn(size, generator=generator, dtype=torch.float64)
        self.logp = scores.log_softmax(-1)

    def start(self):
        n = self.logp.shape[0]
        return torch.arange(n), torch.zeros(n, dtype=torch.int64)

    def step(self, tokens, state):
        sentence, previous = state
        return self.logp[sentence, previous, tokens], (sentence, tokens)

    @staticmethod
    def select(state, rows):
        return tuple(part[rows] for part in state)

    def score(self, sentence, tokens):
        """log p of tokens and EOS."""
        before = [0, BOS, *tokens]
        after = [*tokens, EOS]
        return sum(self.logp[sentence, a, b, c].item() for a, b, c in zip(before[:-1], before[1:], after, strict=True))

    def search(self, beam, max_length, length_penalty=0.0):
        return beam_search(
            self.step, self.select, self.start(), sentences=self.logp.shape[0], beam=beam, bos=BOS, eos=EOS,
            max_length=max_length, length_penalty=length_penalty,
        )  # fmt: skip


def exhaustive(table, sentence, max_length, length_penalty):
    """The oracle: the best of all sequences."""
    words = [token for token in range(table.logp.shape[1]) if token != EOS]
    candidates = itertools.chain.from_iterable(itertools.product(words, repeat=length) for length in range(max_length))
    return max(
        (table.score(sentence, tokens) / ((6 + len(tokens)) / 6) ** length_penalty, list(tokens))
        for tokens in candidates
    )


def greedy(table, sentence, max_length):
    tokens, state = [], (torch.tensor([sentence]), torch.tensor([0]))
    last = BOS
    while len(tokens) < max_length - 1:
        logp, state = table.step(torch.tensor([last]), state)
        last = int(logp.argmax())
        if last == EOS:
            break
        tokens.append(last)
    return tokens


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("max_length", [1, 2, 4])
def test_a_beam_of_all_prefixes_is_exhaustive_search(max_length, length_penalty):
    table = Table(sentences=6)
    found = table.search(beam=3**max_length, max_length=max_length, length_penalty=length_penalty)
    for sentence, hypothesis in enumerate(found):
        score, tokens = exhaustive(table, sentence, max_length, length_penalty)
        assert hypothesis.tokens == tokens
        assert hypothesis.score == pytest.approx(score, rel=1e-12)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_beam_of_one_is_greedy(length_penalty):
    table = Table(sentences=20, seed=3)
    for sentence, hypothesis in enumerate(table.search(1, 7, length_penalty)):
        assert hypothesis.tokens == greedy(table, sentence, 7)


@pytest.mark.parametrize("beam", [1, 2, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 0.8])
def test_scores_are_those_of_the_sequences_and_sentences_do_not_meet(beam, length_penalty):
    table = Table(sentences=8, vocabulary=5, seed=1)
    for sentence, hypothesis in enumerate(table.search(beam, 6, length_penalty)):
        penalty = ((6 + len(hypothesis.tokens)) / 6) ** length_penalty
        assert hypothesis.score == pytest.approx(table.score(sentence, hypothesis.tokens) / penalty, rel=1e-12)
        assert EOS not in hypothesis.tokens
        assert len(hypothesis.tokens) < 6
        alone = Table(sentences=8, vocabulary=5, seed=1)
        alone.logp = alone.logp[sentence : sentence + 1]
        assert alone.search(beam, 6, length_penalty) == [hypothesis]


def test_wider_beams_find_more_and_length_normalisation_longer_outputs():
    table = Table(sentences=200, vocabulary=6, seed=2, sharpness=2.0)
    totals = [sum(h.score for h in table.search(beam, 6)) for beam in (1, 2, 4, 16)]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]
    lengths = [sum(len(h.tokens) for h in table.search(8, 6, alpha)) for alpha in (0.0, 1.0)]
    assert lengths[1] > lengths[0]


def test_search_stops_when_nothing_can_be_overtaken():
    table = Table(sentences=1)
    table.logp = torch.full_like(table.logp, math.log(1e-6))
    table.logp[..., EOS] = math.log(1 - 3e-6)
    calls = []

    def step(tokens, state):
        calls.append(len(tokens))
        return table.step(tokens, state)

    (found,) = beam_search(
        step, table.select, table.start(), sentences=1, beam=3, bos=BOS, eos=EOS, max_length=50, length_penalty=1.0
    )
    assert found.tokens == []
    assert len(calls) <= 3


def test_nan_shows():
    table = Table(sentences=2)
    table.logp[1] = torch.nan
    for beam in (1, 3):
        clean, broken = table.search(beam, 4)
        assert not math.isnan(clean.score)
        assert math.isnan(broken.score)


def test_nonsense_is_refused():
    table = Table(sentences=1)
    with pytest.raises(ValueError, match="beam must be at least 1, not 0"):
        table.search(0, 4)
    with pytest.raises(ValueError, match="max_length must be at least 1, not 0"):
        table.search(2, 0)
    with pytest.raises(ValueError, match="length_penalty must be at least 0, not nan"):
        table.search(2, 4, math.nan)
    table.logp[..., EOS] = -torch.inf
    with pytest.raises(ValueError, match="no sequence of at most 4 tokens"):
        table.search(2, 4)
