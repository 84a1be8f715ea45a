"""Recurrent layers whose backward pass selects k neurons of each gate (TKDE, section 2.3.2).

Top-k is for the matrix products alone (TKDE, section 2.3.1): element-wise operations keep their gradient. In a
recurrent layer the products are those that make the pre-activations of the gates,

    a_t = W_ih x_t + b_ih        b_t = W_hh h_{t-1} + b_hh        p_t = a_t + b_t  (one part for each gate)

so S acts on the gradient at p_t. "We simplified the back propagation of the gates independently": each gate selects its
own k of h neurons, for each example and each time step, and neuron i of a gate is row i of that gate in W_ih and in
W_hh alike:

    dx_t = S(dp_t) W_ih      dh_{t-1} = S(dp_t) W_hh + element-wise paths      db_ih = db_hh = Σ dp_t, in full
    dW_ih = Σ_t S(dp_t)ᵀ x_t      dW_hh = Σ_t S(dp_t)ᵀ h_{t-1}

*The new gate of the GRU*, p = a_n + r b_n, has two linear maps, whose output gradients are dp and r dp. We select on dp
and use the same neurons for both: the paper selects of a gate, not of a matrix, and k rows of either matrix is what it
counts; a neuron's two halves would otherwise be trained on different examples. Gates r and z are the same either way.

Only dh has to be computed step by step; dx, dW_ih and dW_hh are one product each over the N = Σ_t B_t rows of all time
steps. `cells` has the equations, `through_time` the loops in torch's operators, `native` the same compiled, `fused` the
forward pass of an LSTM by torch's kernel, `function` the registration with autograd, `reference` the oracle.
"""

from meprop_bench.ops.recurrent.function import KERNELS, check_kernel, recurrent

__all__ = ["KERNELS", "check_kernel", "recurrent"]
