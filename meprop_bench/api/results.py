"""What was measured, as an object: printed as a table, shown as HTML in a notebook, and given as rows to go on with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meprop_bench.errors import UserError
from meprop_bench.optional import require
from meprop_bench.paper.folder import load as read
from meprop_bench.report.best import Best, best, chosen
from meprop_bench.report.document import Document
from meprop_bench.report.formats import write_report
from meprop_bench.report.fragment import as_fragment
from meprop_bench.report.terminal import as_table
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store, replace_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Results", "load"]


class Results:
    """Rows of a results folder, and what they say.

    `folder` is where they are stored, None where they are nowhere yet (`save`).
    """

    def __init__(self, document: Document, files: Mapping[str, bytes] | Path, folder: Path | None) -> None:
        self._document, self._files = document, files  # these, or the folder that they are in
        self.folder = folder

    @classmethod
    def of(cls, store: Store, *, stored: bool, notes: Sequence[str] = ()) -> Results:
        """Take what a results folder holds now; it is not needed any more unless it is where they are `stored`."""
        found = Document.of(store)
        document = replace(found, notes=(*notes, *found.notes))
        return cls(document, store.folder if stored else _contents(store.folder), store.folder if stored else None)

    @property
    def rows(self) -> Sequence[Row]:
        """A row for each phase of each case: its axes, times in seconds, the speed-up and its interval, the check."""
        return self._document.rows

    @property
    def summary(self) -> Sequence[str]:
        """The result in a few sentences."""
        return self._document.summary

    @property
    def notes(self) -> Sequence[str]:
        """What a reader has to know: why it is not to be believed, first, and what is missing."""
        return (*self._document.doubts, *self._document.notes)

    def best(self, margin: float | None = None, **axes: Any) -> Best:
        """Return the fastest case that can be recommended, and why: print it.

        Args:
            margin: the loss of quality that is allowed where it was compared, in the metric's unit [default: half a
                point of a percentage, of another metric half a percent of dense's figure].
            axes: look at the cases with these values alone, as in `threads=2`.

        Raises:
            UserError: an axis that does not exist, or a margin below 0.

        """
        return best(chosen(self.rows, axes), margin)

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a table of pandas, each figure a column; the raw values are in `rows` alone.

        Raises:
            UserError: pandas is not installed.

        """
        require("pandas", "a table of pandas needs pandas", "notebook")
        import pandas as pd

        columns, *lines = self._document.lines()
        return pd.DataFrame(lines, columns=columns)

    def save(self, folder: str | Path) -> Path:
        """Write them to a folder of their own, with the report's pages, and return it; `load` reads it again.

        Raises:
            UserError: the folder is not empty, or cannot be written.

        """
        target = Path(folder).expanduser()
        if not self._files:
            raise UserError("this was loaded from a bundle, or a file of pytest-benchmark: copy that file instead")
        try:
            target.mkdir(parents=True, exist_ok=True)
            if any(target.iterdir()):
                raise UserError(f"{target} is not empty: name an empty or a new folder")
        except OSError as error:
            raise UserError(f"cannot write to {target}: {error.strerror}; name another folder") from None
        files = _contents(self._files) if isinstance(self._files, Path) else self._files
        for name, content in files.items():
            replace_file(target / name, content)
        write_report(target, read(target)[0])
        self.folder = target
        return target

    def __str__(self) -> str:
        return as_table(self._document, terminal=_terminal(), verdict=self._verdict())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_fragment(self._document, self._verdict())

    def _verdict(self) -> Sequence[str]:
        """Say which case is best, where cases were timed that can be compared."""
        timed = any(row.speedup is not None and row.method != "dense" for row in self.rows)
        return found.sentences if timed and (found := best(self.rows)).comparable else ()


def load(folder: str | Path) -> Results:
    """Read a results folder of any command, a bundle (`report --bundle`), or a JSON file of the pytest-benchmark suite.

    Raises:
        UserError: there are no results, or corrupt ones.

    """
    path = Path(folder).expanduser()
    document, store = read(path)
    return Results(document, {} if store is None else path, path)


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a results folder that are no pages of a report, which are made anew."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".jsonl")}


def _terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
