"""A project of a user's, as a measuring process sees it: where its modules come from, and whether they are its own.

A process that is to run one revision must not import another one: an installed copy, or an editable installation that
leads to the work tree, would be the same code in base and head, and no change would ever be found. So whoever compares
revisions asks afterwards which files the modules came from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from meprop_bench.sweep.worker import WorkerSession

__all__ = ["BORROWED", "borrowed", "enter_project", "origins"]

BORROWED = "MEPROP_BENCH_BORROWED"
"""Variable with the folders, behind all of its environment's, that a process finds in the environment of the gate what
its own has not."""


def enter_project(session: WorkerSession, path: Sequence[str], first: bool) -> Mapping[str, Any]:
    """Have modules found in these folders: `first`, or only those that are found nowhere else.

    Not before the process has said hello, or a file `random.py` of theirs would be what everybody imports.
    """
    new = [folder for folder in path if folder not in sys.path]
    if first:
        sys.path[:0] = new
    else:
        sys.path += new
    return {}


def origins(session: WorkerSession, names: Collection[str], below: str) -> Mapping[str, Any]:
    """Return module -> file, of all that have been imported by these top-level names, or from `below` a folder.

    What is installed there, in an environment that lies in that folder, is not meant.
    """
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and (name.partition(".")[0] in names or _below(file, below)):
            found[name] = file
    return {"origins": found}


def borrowed(session: WorkerSession) -> Mapping[str, Any]:
    """Return the names of what this process has imported and its environment has not."""
    folders = [folder for folder in os.environ.get(BORROWED, "").split(os.pathsep) if folder]
    found = {
        name
        for name, module in list(sys.modules.items())
        if "." not in name
        and isinstance(file := getattr(module, "__file__", None), str)
        and any(file.startswith(os.path.join(folder, "")) for folder in folders)
    }
    first = ("torch", "numpy")  # what matters most
    return {"borrowed": sorted((name for name in found if name[0] != "_"), key=lambda name: (name not in first, name))}


def _below(file: str, folder: str) -> bool:
    return file.startswith(os.path.join(folder, "")) and "site-packages" not in file
