"""How things are measured: clocks, interleaved pairs, fresh processes, the machine and its peaks.

Nothing in this room knows what is measured; it sees callables and seconds.
"""
