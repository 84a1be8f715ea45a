from meprop_bench.training import Training as Training

__version__: str
