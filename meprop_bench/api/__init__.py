"""What the commands do, from Python: `compare`, `load` and `profile`, and what they return (docs/python.md)."""
