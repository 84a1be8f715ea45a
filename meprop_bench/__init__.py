"""meprop-bench: does sparsified back propagation pay, on this machine, for this model, and does it keep the accuracy?

This module holds the version alone, so that verbs which only read results never load torch.
"""

__version__ = "0.1.0"
