"""A results folder as something to read: tables, plots, README.md, HTML; made from stored results alone (`formats`)."""
