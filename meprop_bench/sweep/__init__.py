"""Sweeps: plans of cases, and the processes that measure them."""
