"""What `make gpu-report` runs: tests, a sweep and the papers' tables on a GPU, within minutes, into one folder."""
