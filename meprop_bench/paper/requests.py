"""What a worker answers for the tables: it trains one arm after the other, counts data, and times decoding.

train_arm   {arm, seed, device}   -> the training, as `trainings.Trained` has it
examples    {source}              -> column -> how many examples the data have
cut         {arm, sizes, device}  -> multiplications of an item, before and after; both models wait to be timed
decode      {seconds, seed}       -> pairs: seconds of decoding the test set, before and after
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meprop_bench.paper.experiment import Arm

if TYPE_CHECKING:
    from meprop_bench.sweep.worker import Session

__all__: list[str] = []


def train_arm(session: Session, arm: Mapping[str, Any], seed: int, device: str) -> Mapping[str, Any]:
    """Train one arm from one seed."""
    from meprop_bench.paper.arm import train_arm

    trained = train_arm(Arm.from_json(arm), seed, device=device, environment_id=session.environment_id)
    return replace(trained, git_revision=session.environment.get("git_revision")).to_json()


def examples(session: Session, source: str) -> Mapping[str, Any]:
    """Count the examples of a data set of images, each of which is one classification; and whether it is published.

    `published` is a number among numbers: 0 of data that are not the published ones, else 1.
    """
    from meprop_bench.data import load_images

    data = load_images(source)
    parts = {"train": data.train, "dev": data.dev, "test": data.test}
    counts = {f"{name}_{what}": len(part) for name, part in parts.items() for what in ("size", "items")}
    return counts | {"published": int(data.published is not False)}


def cut(session: Session, arm: Mapping[str, Any], sizes: Mapping[str, int], device: str) -> Mapping[str, Any]:
    """Build the arm's model, and once more with its layers cut to these sizes."""
    from meprop_bench.paper.decode import Decoders

    session.loaded["decoders"] = decoders = Decoders(Arm.from_json(arm), sizes, device)
    return {"multiplications": decoders.multiplications()}


def decode(session: Session, seconds: float, seed: int) -> Mapping[str, Any]:
    """Time the decoding of the test set by both."""
    if "decoders" not in session.loaded:
        raise ValueError("there are no models to decode with")
    return {"pairs": session.loaded["decoders"].pairs(seconds, seed)}
