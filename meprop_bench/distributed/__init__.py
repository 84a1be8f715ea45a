"""Distributed: data-parallel training in which layers with row gradients exchange rows instead of dense gradients.

    model = DataParallel(model)                       # or exchange="agreed"
    loss = F.cross_entropy(model(x), y)               # times model.loss_weight(len(x)) where batches differ in size
    loss.backward()                                   # when it returns, gradients are those of all ranks, averaged
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()                                  # an optimizer by rows: see `meprop_bench.optim`

`parallel` is the module around the model; `gathered` and `agreed` are the two ways to exchange rows, `buckets` what
they share, and `channel` the process groups, what goes over them, and what is said when a process has died.
"""

from meprop_bench.distributed.channel import BytesSent, ExchangeError
from meprop_bench.distributed.parallel import DataParallel
from meprop_bench.optim import clip_grad_norm_

__all__ = ["BytesSent", "DataParallel", "ExchangeError", "clip_grad_norm_"]
