"""What is printed a piece at a time, as one text."""

from meprop_bench.report.formats import pieces


def as_csv(document):
    return "".join(pieces("csv", document))


def as_markdown(document):
    return "".join(pieces("md", document))
