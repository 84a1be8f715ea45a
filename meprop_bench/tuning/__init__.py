"""Which method and which k, for this model on this machine: the search behind `meprop-bench tune`."""
