"""A checkpoint: everything that training depends on from one step to the next, in one file that is whole or not there.

A file is written beside the old one, synced and put in its place, so that a kill at any moment leaves one of the two.
It holds tensors, numbers, text, lists and dictionaries only and is read with `weights_only=True`: it cannot run code.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from meprop_bench.atomic import replacing
from meprop_bench.errors import UserError

__all__ = ["FORMAT", "read", "write"]

FORMAT = "meprop-bench/checkpoint/1"


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint as a whole or not at all.

    Raises:
        UserError: it cannot be written; an earlier one is still there.

    """
    try:
        with replacing(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk in a way of its own
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; free some space or choose another folder") from None


def read(path: Path) -> dict[str, Any] | None:
    """Return what `write` wrote, on the CPU; None where there is no file.

    Raises:
        UserError: it is damaged, or something else.

    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} is damaged, or no checkpoint of this version: delete it and train anew")
    return found
