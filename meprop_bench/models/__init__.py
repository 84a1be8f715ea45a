"""The papers' models in plain PyTorch; a method is applied to them afterwards (`meprop_bench.nn.convert`)."""
