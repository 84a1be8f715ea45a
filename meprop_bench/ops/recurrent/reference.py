"""The oracle of recurrent layers: one gate, one time step after the other, equation by equation, in float64.

Written from TKDE, section 2.3.2, and the definitions in the documentation of `torch.nn.LSTM`, `GRU` and `RNN`, not from
`cells`. Nothing may import it but tests and checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meprop_bench.ops import reference

__all__ = ["run"]

Gates = dict[str, Tensor]
_GATES = {"lstm": "ifgo", "gru": "rzn", "tanh": "h", "relu": "h"}


def run(
    cell: str,
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    sizes: tuple[int, ...],
    reverse: bool,
    k: int,
    selection: str,
    dy: Tensor,
    d_states: tuple[Tensor, ...],
) -> tuple[list[Tensor], list[Tensor]]:
    """Run a layer forward and backward; arguments as for `recurrent`, without chance in the selection.

    dy `(N, h)` and d_states are the gradients of the output and of the final states. Returns output and final states;
    and the gradients of x, the four weights, and the initial states.
    """
    names = _GATES[cell]
    x, dy = x.double(), dy.double()
    w_ih, w_hh, b_ih, b_hh = (dict(zip(names, w.double().chunk(len(names)), strict=True)) for w in weights)
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    times = list(range(len(sizes)))[:: -1 if reverse else 1]
    now = [s.double().clone() for s in states]
    y = torch.zeros(dy.shape, dtype=torch.float64)
    tape = []
    for t in times:
        rows = slice(starts[t], starts[t] + sizes[t])
        before = [s[: sizes[t]].clone() for s in now]
        a = {g: x[rows] @ w_ih[g].t() + b_ih[g] for g in names}
        b = {g: before[0] @ w_hh[g].t() + b_hh[g] for g in names}
        gates, after = _forward(cell, a, b, before)
        for state, new in zip(now, after, strict=True):
            state[: sizes[t]] = new
        y[rows] = after[0]
        tape.append((rows, before, after, gates, b))
    dx = torch.zeros_like(x)
    grads = [{g: torch.zeros_like(w[g]) for g in names} for w in (w_ih, w_hh, b_ih, b_hh)]
    d_now = [d.double().clone() for d in d_states]
    for rows, before, after, gates, b in reversed(tape):
        size = rows.stop - rows.start
        d_after = [d[:size].clone() for d in d_now]
        d_after[0] += dy[rows]
        d_pre, times_r, d_before = _backward(cell, d_after, before, after, gates, b)
        for g in names:
            mask = reference.keep(reference.select(d_pre[g], k, selection), size, d_pre[g].shape[1])
            d_a, d_b = d_pre[g], d_pre[g] * times_r.get(g, 1)
            dx[rows] += (d_a * mask) @ w_ih[g]
            d_before[0] = d_before[0] + (d_b * mask) @ w_hh[g]
            grads[0][g] += (d_a * mask).t() @ x[rows]
            grads[1][g] += (d_b * mask).t() @ before[0]
            grads[2][g] += d_a.sum(0)
            grads[3][g] += d_b.sum(0)
        for d, new in zip(d_now, d_before, strict=True):
            d[:size] = new
    return [y, *now], [dx, *(torch.cat([grad[g] for g in names]) for grad in grads), *d_now]


def _forward(cell: str, a: Gates, b: Gates, before: list[Tensor]) -> tuple[Gates, list[Tensor]]:
    """Return the gates and the states after the step."""
    if cell == "lstm":
        gates = {g: torch.sigmoid(a[g] + b[g]) for g in "ifo"} | {"g": torch.tanh(a["g"] + b["g"])}
        c = gates["f"] * before[1] + gates["i"] * gates["g"]
        return gates, [gates["o"] * torch.tanh(c), c]
    if cell == "gru":
        gates = {g: torch.sigmoid(a[g] + b[g]) for g in "rz"}
        gates["n"] = torch.tanh(a["n"] + gates["r"] * b["n"])
        return gates, [(1 - gates["z"]) * gates["n"] + gates["z"] * before[0]]
    h = torch.tanh(a["h"] + b["h"]) if cell == "tanh" else torch.relu(a["h"] + b["h"])
    return {"h": h}, [h]


def _backward(
    cell: str, d_after: list[Tensor], before: list[Tensor], after: list[Tensor], gates: Gates, b: Gates
) -> tuple[Gates, Gates, list[Tensor]]:
    """Return the gradients at the pre-activations, the factor with which they reach b, and the element-wise paths."""
    dh = d_after[0]
    if cell == "lstm":
        i, f, g, o = (gates[name] for name in "ifgo")
        tanh_c = torch.tanh(after[1])
        dc = d_after[1] + dh * o * (1 - tanh_c**2)
        d_pre = {
            "i": dc * g * i * (1 - i),
            "f": dc * before[1] * f * (1 - f),
            "g": dc * i * (1 - g**2),
            "o": dh * tanh_c * o * (1 - o),
        }
        return d_pre, {}, [torch.zeros_like(dh), dc * f]
    if cell == "gru":
        r, z, n = (gates[name] for name in "rzn")
        d_n = dh * (1 - z) * (1 - n**2)
        d_pre = {"r": d_n * b["n"] * r * (1 - r), "z": dh * (before[0] - n) * z * (1 - z), "n": d_n}
        return d_pre, {"n": r}, [dh * z]
    h = gates["h"]
    return {"h": dh * ((1 - h**2) if cell == "tanh" else (h > 0))}, {}, [torch.zeros_like(dh)]
