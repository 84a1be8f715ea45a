"""The papers' translator: a deep bidirectional LSTM encoder, an LSTM decoder and Luong's attention (TKDE, 3.3.3).

    encoder     H = BiLSTM(E_src x)                                   H (B, S, h): h/2 for each direction
    decoder     d_t = LSTM(E_trg y_t, d_{t-1})                        d (B, T, h), begun with the encoder's last states
    attention   a_ts = softmax_s(d_tᵀ W_a H_s),  c_t = Σ_s a_ts H_s    Luong et al. (2015), "general", over words alone
                o_t = tanh(W_c [c_t; d_t])                            (B, T, h)
    output      log p(y_{t+1} | y_≤t, x) = log softmax(W_o o_t)       (B, T, V)

**Input feeding** (Luong et al., section 3.3) gives o_{t-1} to the LSTM beside y_t. Then every step waits for the one
before it, and the decoder is a loop over T calls of one step; without, it is one call for all T steps, after which
attention and output are two large products. The default is without, as the paper does not say which it took: forward
and backward then take 246 ms instead of 442 (B = 64, S = T = 25, h = 256, 3 layers, V = 2000; x86-64, 2 cores).

The LSTMs are torch's own layers either way, and `convert(model, k=0.0625, kinds=(nn.LSTM,))` sparsifies them; with that
k, unified, the two figures are 142 and 241 ms. `algorithms.alternating` sparsifies encoder and decoder alternately.

Sentences are padded on the right. The encoder packs them, so that its backward direction begins at the last word;
attention gives padding no weight. Parameters are drawn from U(-0.1, 0.1), as by Luong et al. (section 4.1). The paper's
recurrent dropout is dropout between the layers here, which is what `nn.LSTM` offers.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from meprop_bench.models import check, draw
from meprop_bench.models.beam import Hypothesis, beam_search
from meprop_bench.nn.evaluation import evaluation_mode

__all__ = ["Attention", "Decoder", "DecoderState", "Encoder", "Translator"]


class DecoderState(NamedTuple):
    """All that the next step needs, for N rows: as many for each of the B source sentences, in their order."""

    hidden: Tensor  # (layers, N, h)
    cell: Tensor  # (layers, N, h)
    attended: Tensor  # the last o_t, (N, h), zeros at first; only input feeding reads it
    memory: Tensor  # H, (B, S, h)
    padding: Tensor  # whether a source position is padding, (B, S)

    def select(self, rows: Tensor) -> DecoderState:
        """Return the state of some rows, as many for each sentence, in the order of sentences; rows may repeat."""
        return self._replace(
            hidden=self.hidden.index_select(1, rows),
            cell=self.cell.index_select(1, rows),
            attended=self.attended.index_select(0, rows),
        )


class Encoder(nn.Module):
    """Embedding and bidirectional LSTM."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int, dropout: float, pad: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=pad)
        self.dropout = nn.Dropout(dropout)
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(embedding, hidden // 2, layers, batch_first=True, bidirectional=True, dropout=between)

    def forward(self, source: Tensor, lengths: Tensor) -> DecoderState:
        """Encode source `(B, S)` with lengths `(B,)`; returns the decoder's first state."""
        x = self.dropout(self.embedding(source))
        packed, states = self.lstm(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
        memory, _ = pad_packed_sequence(packed, batch_first=True, total_length=source.shape[1])
        # The directions of each layer side by side: (2 layers, B, h/2) to (layers, B, h).
        hidden, cell = (torch.cat([state[0::2], state[1::2]], dim=2) for state in states)
        padding = torch.arange(source.shape[1], device=source.device) >= lengths.to(source.device).unsqueeze(1)
        return DecoderState(hidden, cell, memory.new_zeros(hidden.shape[1:]), memory, padding)


class Attention(nn.Module):
    """Luong's global attention with the "general" score."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden, hidden, bias=False)
        self.combine = nn.Linear(2 * hidden, hidden, bias=False)

    def forward(self, queries: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        """Attend from queries `(N, T, h)` to memory `(B, S, h)` where it is not padding `(B, S)`; returns `(N, T, h)`.

        The N rows are N / B for each sentence: the hypotheses of a beam search share their sentence's memory.
        """
        q = self.score(queries).view(memory.shape[0], -1, memory.shape[2])  # (B, N/B T, h)
        scores = q @ memory.transpose(1, 2)  # (B, N/B T, S)
        weights = scores.masked_fill(padding.unsqueeze(1), -torch.inf).softmax(dim=2)
        context = (weights @ memory).view(queries.shape)
        return torch.tanh(self.combine(torch.cat([context, queries], dim=2)))


class Decoder(nn.Module):
    """Embedding, LSTM, attention and output."""

    def __init__(
        self, vocabulary: int, embedding: int, hidden: int, layers: int, dropout: float, pad: int, input_feeding: bool
    ) -> None:
        super().__init__()
        self.input_feeding = input_feeding
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=pad)
        self.dropout = nn.Dropout(dropout)
        width, between = embedding + hidden * input_feeding, dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, dropout=between)
        self.attention = Attention(hidden)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Read tokens `(N, T)`; returns the logits of the tokens after each, `(N, T, V)`, and the state after the last.

        Calls may be chained: reading tokens in several calls gives what reading them in one does.
        """
        x = self.dropout(self.embedding(tokens))
        if not self.input_feeding:
            attended, state = self._attend(x, state)
        else:
            parts = []
            for x_t in x.split(1, dim=1):
                part, state = self._attend(torch.cat([x_t, state.attended.unsqueeze(1)], dim=2), state)
                parts.append(part)
            attended = torch.cat(parts, dim=1)
        return self.output(self.dropout(attended)), state

    def _attend(self, x: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Run the LSTM over x `(N, T, *)`; returns all o_t, `(N, T, h)`, and the next state."""
        d, (hidden, cell) = self.lstm(x, (state.hidden, state.cell))
        attended = self.attention(d, state.memory, state.padding)
        return attended, state._replace(hidden=hidden, cell=cell, attended=attended[:, -1])


class Translator(nn.Module):
    """Sequence-to-sequence model that returns logits.

    Args:
        source_vocabulary, target_vocabulary: how many tokens there are.
        embedding, hidden: entries of a token's vector, and h, an even number.
        layers: of the encoder and of the decoder; the paper's have 3.
        dropout: share that is dropped in training, of embeddings, between layers and before the output.
        input_feeding: give the attention's last output to the decoder's input; slower, see the module.
        pad, bos, eos: tokens that fill sentences up, in both vocabularies, and that begin and end a target sentence.
        seed: of the initial weights.

    Raises:
        ValueError: a size below 1, an odd h, a dropout outside [0, 1), or special tokens that are equal or outside of
            a vocabulary.

    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        *,
        embedding: int = 512,
        hidden: int = 512,
        layers: int = 3,
        dropout: float = 0.0,
        input_feeding: bool = False,
        pad: int = 0,
        bos: int = 1,
        eos: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        vocabularies = {"source_vocabulary": source_vocabulary, "target_vocabulary": target_vocabulary}
        check(**vocabularies, embedding=embedding, hidden=hidden, layers=layers)
        if hidden % 2:
            raise ValueError(f"hidden must be even, half of it for each direction of the encoder, not {hidden}")
        check(dropout)
        special = {pad, bos, eos}
        if len(special) < 3 or min(special) < 0 or max(special) >= target_vocabulary or pad >= source_vocabulary:
            raise ValueError(f"pad, bos and eos must be different tokens of the vocabulary, not {pad}, {bos}, {eos}")
        self.pad, self.bos, self.eos = pad, bos, eos
        with torch.device("meta"):
            self.encoder = Encoder(source_vocabulary, embedding, hidden, layers, dropout, pad)
            self.decoder = Decoder(target_vocabulary, embedding, hidden, layers, dropout, pad, input_feeding)
        draw(self, seed, lambda *_: 0.1)
        with torch.no_grad():
            for table in (self.encoder.embedding, self.decoder.embedding):
                table.weight[pad] = 0

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Return the logits of the token after each of the target's, `(B, T, V)`.

        Args:
            source: tokens `(B, S)`, padded on the right.
            lengths: of the source sentences, `(B,)`, int64, each at least 1; best on the CPU, where it is needed.
            target: tokens `(B, T)` that begin with BOS.

        """
        logits, _ = self.decoder(target, self.encoder(source, lengths))
        return cast(Tensor, logits)

    def loss(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Return the mean negative log-likelihood, in nats, of target `(B, T)`: BOS, the words, EOS, padding."""
        logits = self(source, lengths, target[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=self.pad)

    @torch.no_grad()
    def translate(
        self, source: Tensor, lengths: Tensor, *, beam: int = 1, max_length: int = 100, length_penalty: float = 0.0
    ) -> list[Hypothesis]:
        """Return the best translation that beam search finds for each sentence; the default is greedy.

        Arguments are those of `forward` and of `models.beam.beam_search`, and so are the errors.
        """
        with evaluation_mode(self):
            return beam_search(
                self._next,
                DecoderState.select,
                self.encoder(source, lengths),
                sentences=source.shape[0],
                beam=beam,
                bos=self.bos,
                eos=self.eos,
                max_length=max_length,
                length_penalty=length_penalty,
                device=source.device,
            )

    def _next(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Return the log-probabilities of the next token, `(N, V)`, minus infinity for padding and BOS."""
        logits, state = self.decoder(tokens.unsqueeze(1), state)
        never = torch.tensor([self.pad, self.bos], device=tokens.device)
        return logits[:, 0].log_softmax(dim=1).index_fill(1, never, -torch.inf), state
