"""The child side of a run: one process that trains one arm after the other, and counts data.

    hello   {threads, device}     -> the environment and its id
    train   {arm, seed, device}   -> the training, as `trainings.Trained` has it
    count   {source}              -> column -> how many examples the data have
    cut     {arm, sizes, device}  -> multiplications of an item, before and after; both models wait to be timed
    decode  {seconds, seed}       -> pairs: seconds of decoding the test set, before and after

It ends with its parent, even amid a training (`measure.serve`). Run as `python -m meprop_bench.paper.worker`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meprop_bench.measure.serve import serve

if TYPE_CHECKING:
    from meprop_bench.paper.decode import Decoders

__all__ = ["Session", "main"]

_Answer = Mapping[str, Any]


class Session:
    """What a worker holds between requests: where it is, and the models whose decoding is timed."""

    def __init__(self) -> None:
        self._environment_id = "unknown"
        self._git_revision: str | None = None
        self._decoders: Decoders | None = None

    def handle(self, message: Mapping[str, Any]) -> _Answer:
        """Answer one request."""
        actions: dict[str, Callable[..., _Answer]] = {
            "hello": self.hello,
            "train": self.train,
            "count": self.count,
            "cut": self.cut,
            "decode": self.decode,
        }
        return actions[message["do"]](**{key: value for key, value in message.items() if key != "do"})

    def hello(self, threads: int, device: str) -> _Answer:
        """Import what takes seconds, and say where we are."""
        import torch

        from meprop_bench.measure.allocator import current
        from meprop_bench.measure.environment import collect, environment_id

        torch.set_num_threads(threads)
        environment = collect(device, current())
        self._environment_id = environment_id(environment)
        self._git_revision = environment.get("git_revision")
        return {"environment": environment, "environment_id": self._environment_id}

    def train(self, arm: Mapping[str, Any], seed: int, device: str) -> _Answer:
        """Train one arm from one seed."""
        from meprop_bench.paper.arm import train_arm
        from meprop_bench.paper.experiment import Arm

        trained = train_arm(Arm.from_json(arm), seed, device=device, environment_id=self._environment_id)
        return replace(trained, git_revision=self._git_revision).to_json()

    def count(self, source: str) -> _Answer:
        """Count the examples of a data set of images, each of which is one classification; and whether it is published.

        `published` is a number among numbers: 0 of data that are not the published ones, else 1.
        """
        from meprop_bench.data import load_images

        data = load_images(source)
        parts = {"train": data.train, "dev": data.dev, "test": data.test}
        counts = {f"{name}_{what}": len(part) for name, part in parts.items() for what in ("size", "items")}
        return counts | {"published": int(data.published is not False)}

    def cut(self, arm: Mapping[str, Any], sizes: Mapping[str, int], device: str) -> _Answer:
        """Build the arm's model, and once more with its layers cut to these sizes."""
        from meprop_bench.paper.decode import Decoders
        from meprop_bench.paper.experiment import Arm

        self._decoders = Decoders(Arm.from_json(arm), sizes, device)
        return {"multiplications": self._decoders.multiplications()}

    def decode(self, seconds: float, seed: int) -> _Answer:
        """Time the decoding of the test set by both."""
        if self._decoders is None:
            raise ValueError("there are no models to decode with")
        return {"pairs": self._decoders.pairs(seconds, seed)}


def main() -> None:
    """Serve requests until standard input ends."""
    serve(Session().handle)


if __name__ == "__main__":
    main()
