"""The asv suite: costs of the preset `suite`, a module for each workload, a class for each phase.

Each benchmark returns what the command line's runner measured. asv knows no "higher is better", so all of them are
costs: the ratio method / dense (not the speed-up), the accuracy lost, the GPU's idle share.
"""
