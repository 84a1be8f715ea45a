"""Algorithms on top of meProp: what a record of active neurons is good for.

`activeness` counts which neurons the backward pass keeps. `mesimp` removes those that are seldom active: `structure`
finds where a neuron lives, `removal` takes it out, or holds it at zero, and `simplified` describes, saves, loads and
exports what is left. `meact` trains each example through its own active neurons. Two modules say when to sparsify:
`schedule` lets k follow the steps, `alternating` sparsifies encoder and decoder in alternating epochs.
"""
