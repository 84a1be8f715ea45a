"""The two papers: what they print (data), how each of their tables is run here, and whether it held."""

PLAN_KEYS = frozenset({"table", "scale", "seeds", "arms"})
"""What the plan of a table's results folder has, and that of no other one: whoever finds a folder can tell its kind."""
