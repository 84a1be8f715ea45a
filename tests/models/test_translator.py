import itertools
import math

import pytest
import torch
from torch import nn

from meprop_bench.models.translator import Translator
from meprop_bench.nn import convert

PAD, BOS, EOS = 0, 1, 2
SIZES = {"embedding": 5, "hidden": 6, "layers": 2}


def translator(**keywords):
    return Translator(9, 8, **{**SIZES, **keywords}).double()


@pytest.fixture
def batch():
    """Source (3, 5) with lengths 2, 5, 1, and target (3, 4)."""
    source = torch.tensor([[3, 4, 0, 0, 0], [5, 6, 7, 8, 3], [4, 0, 0, 0, 0]])
    target = torch.tensor([[1, 3, 4, 2], [1, 7, 2, 0], [1, 2, 0, 0]])
    return source, torch.tensor([2, 5, 1]), target


def shaken(model):
    """Larger weights: with the initial ones attention is all but uniform."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def naive(model, source, target):
    """The oracle: logits (T, V) of one sentence without padding, position by position."""
    encoder, decoder = model.encoder, model.decoder
    memory, (hidden, cell) = encoder.lstm(encoder.embedding(source))  # (S, h); (2 layers, h/2)
    layers = decoder.lstm.num_layers
    state = tuple(
        torch.stack([torch.cat([part[2 * layer], part[2 * layer + 1]]) for layer in range(layers)])
        for part in (hidden, cell)
    )
    o = torch.zeros_like(memory[0])
    logits = []
    for token in target:
        x = decoder.embedding(token)
        if decoder.input_feeding:
            x = torch.cat([x, o])
        d, state = decoder.lstm(x.unsqueeze(0), state)
        d = d[0]
        scores = torch.stack([d @ (decoder.attention.score.weight.t() @ h) for h in memory])
        weights = scores.exp() / scores.exp().sum()
        context = sum(a * h for a, h in zip(weights, memory, strict=True))
        o = torch.tanh(decoder.attention.combine.weight @ torch.cat([context, d]))
        logits.append(decoder.output.weight @ o + decoder.output.bias)
    return torch.stack(logits)


@pytest.mark.parametrize("input_feeding", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_padded_batch_is_the_oracle_on_each_sentence(batch, input_feeding, layers):
    model = shaken(translator(input_feeding=input_feeding, layers=layers))
    source, lengths, target = batch
    logits = model(source, lengths, target)
    assert logits.shape == (3, 4, 8)
    for i, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(logits[i], naive(model, source[i, :length], target[i]))


@pytest.mark.parametrize("input_feeding", [False, True])
def test_gradients_are_the_oracles(batch, input_feeding):
    model = shaken(translator(input_feeding=input_feeding))
    source, lengths, target = batch
    got = torch.autograd.grad(model.loss(source, lengths, target), model.parameters())
    logp = [
        naive(model, source[i, :length], target[i, :-1]).log_softmax(1) for i, length in enumerate(lengths.tolist())
    ]
    words = [(i, t, int(word)) for i in range(3) for t, word in enumerate(target[i, 1:]) if word != PAD]
    loss = -sum(logp[i][t, word] for i, t, word in words) / len(words)
    expected = torch.autograd.grad(loss, model.parameters())
    for name, grad, want in zip(dict(model.named_parameters()), got, expected, strict=True):
        if name.endswith("embedding.weight"):  # the oracle's last target token may be padding, whose vector is fixed
            assert not grad[PAD].any()
        torch.testing.assert_close(grad, want, msg=name)


@pytest.mark.parametrize("input_feeding", [False, True])
def test_decoding_may_be_cut_anywhere(batch, input_feeding):
    model = shaken(translator(input_feeding=input_feeding))
    source, lengths, target = batch
    state, parts = model.encoder(source, lengths), []
    for tokens in target.split([1, 2, 1], dim=1):
        logits, state = model.decoder(tokens, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), model(source, lengths, target))


def test_input_feeding_feeds_the_attention(batch):
    source, lengths, target = batch
    model = translator(input_feeding=True)
    assert model.decoder.lstm.input_size == 5 + 6
    assert translator().decoder.lstm.input_size == 5
    state = model.encoder(source, lengths)
    fed = state._replace(attended=torch.ones_like(state.attended))
    assert not torch.allclose(model.decoder(target, state)[0], model.decoder(target, fed)[0])


@pytest.mark.parametrize("input_feeding", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_translation_is_the_best_of_all_sequences(batch, input_feeding, length_penalty):
    model = shaken(Translator(9, 5, **SIZES, input_feeding=input_feeding).double())
    source, lengths, _ = batch
    found = model.translate(source, lengths, beam=9, max_length=3, length_penalty=length_penalty)
    words = (3, 4)
    for i, length in enumerate(lengths.tolist()):
        scores = {}
        for tokens in itertools.chain.from_iterable(itertools.product(words, repeat=n) for n in range(3)):
            with torch.no_grad():
                logp = naive(model, source[i, :length], torch.tensor([BOS, *tokens])).log_softmax(1)
            total = sum(logp[t, word].item() for t, word in enumerate([*tokens, EOS]))
            scores[tokens] = total / ((6 + len(tokens)) / 6) ** length_penalty
        best = max(scores, key=scores.get)
        assert found[i].tokens == list(best)
        assert found[i].score == pytest.approx(scores[best], rel=1e-9)


def test_greedy_translation(batch):
    model = shaken(translator())
    source, lengths, _ = batch
    for i, hypothesis in enumerate(model.translate(source, lengths, max_length=6)):
        tokens = [BOS]
        while len(tokens) < 6 and (len(tokens) == 1 or tokens[-1] != EOS):
            logits = naive(model, source[i, : lengths[i]], torch.tensor(tokens))[-1].clone()
            logits[[PAD, BOS]] = -math.inf
            tokens.append(int(logits.argmax()))
        assert hypothesis.tokens == [token for token in tokens[1:] if token != EOS]


def test_translation_leaves_the_model_as_it_was(batch):
    model = translator(dropout=0.5)
    source, lengths, _ = batch
    state = torch.get_rng_state()
    first = model.translate(source, lengths, beam=3, max_length=5)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state), "no dropout"
    assert first == model.eval().translate(source, lengths, beam=3, max_length=5)
    assert not model.training


def test_dropout_acts_in_training_alone(batch):
    model = translator(dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(model(*batch), model(*batch))
    model.eval()
    assert torch.equal(model(*batch), model(*batch))
    assert translator(dropout=0.5, layers=1)(*batch).shape == (3, 4, 8)


def test_initial_weights_are_uniform_but_for_padding():
    for name, parameter in Translator(9, 8, **SIZES, seed=5).state_dict().items():
        assert 0.05 < parameter.abs().max() <= 0.1, name
        assert name.endswith("embedding.weight") == (not parameter[PAD].any())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"hidden": 7}, "hidden must be even, .* not 7"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"embedding": -1}, "embedding must be at least 1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1\.0"),
        ({"eos": 1}, "different tokens of the vocabulary, not 0, 1, 1"),
        ({"eos": 8}, "different tokens of the vocabulary, not 0, 1, 8"),
    ],
)
def test_nonsense_is_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        translator(**keywords)


def reversals(count, vocabulary=10, longest=5, seed=0):
    """Sentences and their reversals: source (count, S), lengths, target (count, T)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator)
    source, target = torch.zeros(count, longest, dtype=torch.int64), torch.zeros(count, longest + 2, dtype=torch.int64)
    for i, length in enumerate(lengths.tolist()):
        words = torch.randint(3, vocabulary, (length,), generator=generator)
        source[i, :length] = words
        target[i, : length + 2] = torch.tensor([BOS, *words.flip(0).tolist(), EOS])
    return source, lengths, target


def accuracy(model, data, beam):
    """Share of sentences translated without a mistake."""
    source, lengths, target = data
    expected = [[token for token in row if token > EOS] for row in target.tolist()]
    found = model.translate(source, lengths, beam=beam, max_length=8)
    return sum(h.tokens == want for h, want in zip(found, expected, strict=True)) / len(expected)


def sparsify(model, k):
    turned = convert(model, k=k, kinds=(nn.LSTM,), kernel="masked")
    assert list(turned) == ["encoder.lstm", "decoder.lstm"]


def train(model, steps, batch=64):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    source, lengths, target = reversals(2000)
    for step in range(steps):
        part = torch.arange(step * batch, (step + 1) * batch) % 2000
        optimizer.zero_grad()
        model.loss(source[part], lengths[part], target[part]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("input_feeding", [False, True])
@pytest.mark.parametrize("k", [None, 0.0625])
def test_reversal_is_learnt(k, input_feeding):
    """With the paper's share of the neurons, too: here 2 of 24 in the encoder's layers and 3 of 48 in the decoder's."""
    model = Translator(10, 10, embedding=24, hidden=48, layers=1, input_feeding=input_feeding)
    if k is not None:
        sparsify(model, k)
    held_out = reversals(200, seed=1)
    assert accuracy(model, held_out, beam=1) < 0.2
    train(model, 250)
    assert accuracy(model, held_out, beam=1) > 0.9
    assert accuracy(model, held_out, beam=4) > 0.9


@pytest.mark.parametrize("input_feeding", [False, True])
def test_sparsified_layers_change_the_gradients_alone(batch, input_feeding):
    dense, model = (shaken(translator(input_feeding=input_feeding)) for _ in range(2))
    sparsify(model, 1)
    torch.testing.assert_close(model(*batch), dense(*batch))
    assert model.translate(*batch[:2], beam=3, max_length=5) == dense.translate(*batch[:2], beam=3, max_length=5)
    for net in (model, dense):
        net.loss(*batch).backward()
    exact = dict(dense.named_parameters())
    same = {name: torch.allclose(p.grad, exact[name].grad) for name, p in model.named_parameters()}
    assert not any(same[name] for name in same if "lstm.weight" in name)
    assert same["decoder.output.weight"]
    assert same["decoder.attention.score.weight"] != input_feeding, "fed back, it lies below the LSTM, too"
