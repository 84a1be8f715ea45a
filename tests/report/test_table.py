import io

from meprop_bench.report.formats import write_as
from meprop_bench.report.table import as_table


def test_a_pipe_gets_no_escapes_and_whole_lines(document):
    text = as_table(document)
    assert "\x1b" not in text
    line = next(line for line in text.splitlines() if "150x" in line)
    assert line.startswith("unified")
    assert line.endswith("passed")
    assert "0.81x [0.80, 0.82]" in text
    assert "… " not in text


def test_a_pipe_gets_no_colour_even_if_the_environment_asks_for_it(document, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    target = io.StringIO()
    write_as("table", document, target)
    assert "\x1b" not in target.getvalue()
    assert max(map(len, target.getvalue().splitlines())) > 100


def test_a_terminal_gets_colour_in_its_width(document, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = as_table(document, terminal=True, width=160)
    assert "\x1b[32m" in text


def test_a_command_stays_in_one_line(make_folder, rows):
    from meprop_bench.report.document import Document

    command = "meprop-bench speedup " + " ".join(f"--k {k}" for k in range(1, 60))
    assert f"made by: {command}\n" in as_table(Document.load(make_folder(rows, command=command)))


def test_markup_in_a_name_is_a_name(document, make_row):
    document = type(document)("[bold]t", "c", "s", [make_row("a", method="[red]x[/red]", notes=["[link]"])])
    text = as_table(document)
    assert "[red]x[/red]" in text
    assert "[bold]t" in text


def test_a_stream_that_cannot_hold_a_character_gets_a_question_mark(document):
    target = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write_as("table", document, target)
    assert b"8192 ? 8192" in target.buffer.getvalue()
