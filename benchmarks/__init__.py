"""Entry points to the same cases: the asv suite, the pytest-benchmark suite, and the report of a GPU."""
