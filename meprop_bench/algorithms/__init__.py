"""Algorithms on top of meProp: what a record of active neurons is good for.

`mesimp` removes the neurons that are seldom active; `meact` trains each example through its own active neurons.
"""
