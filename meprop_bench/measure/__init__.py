"""How things are measured: clocks, interleaved pairs, fresh processes, the machine and its peaks.

Nothing here knows what is measured; it sees callables and seconds.
"""
