"""`python -m meprop_bench`: the same as `meprop-bench`."""

from meprop_bench.cli import main

main()
