"""Weights of a stack: made once for every contrast and set of an encoding, and put on record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from kspace.container import ImageIndex
from kspace.operators import ForwardModel
from recon.evidence.record import HeldOutScore
from recon.methods.choose import Method
from recon.methods.classical import Reconstructor
from recon.run.log import Log

Load = Callable[[ImageIndex], tuple[Tensor, ForwardModel]]


class Refinement:
    """What reconstructs each image of an encoding.

    Parameters
    ----------
    method
        As chosen.
    indices
        Of all images of the encoding that are reconstructed.
    load
        Prepared k-space of an image and its operator.
    log
        Takes the weights and how they were chosen.
    companion
        Classical method whose held-out error is measured beside; None: none.
    """

    def __init__(
        self, method: Method, indices: Sequence[ImageIndex], load: Load, log: Log, companion: Reconstructor | None = None
    ) -> None:
        self._method, self._indices, self._load, self._log, self._companion = method, indices, load, log, companion
        self._known: dict[tuple[int, int], Method] = {}
        self._scores: dict[tuple[int, int], HeldOutScore | None] = {}

    def of(self, index: ImageIndex) -> Method:
        """The method for one image; that of a stack with the weights of its volume."""
        from recon.evidence.replicates import held_out_of_fit
        from recon.methods.stack import SLICES, Stack

        made = self._method.reconstruct
        if not isinstance(made, Stack):
            return self._method
        key = (index.contrast, index.set)
        if key not in self._known:
            members = [i for i in self._indices if (i.contrast, i.set) == key]
            # The middles of equal parts: ends of a stack of slices show little.
            n = min(SLICES, len(members))
            chosen = [members[int((i + 0.5) * len(members) / n)] for i in range(n)]
            with self._log.step("stack"):
                stack = replace(made, companion=self._companion).fitted([self._load(i) for i in chosen])
            assert stack.fit is not None
            about = {"contrast": index.contrast, "set": index.set, "from": [i.name for i in chosen]}
            self._log.refinement.append({**about, "says": stack.fit.says, **stack.fit.record()})
            self._known[key] = replace(self._method, reconstruct=stack)
            self._scores[key] = held_out_of_fit(stack.fit, tuple(i.name for i in chosen))
        return self._known[key]

    def score(self, index: ImageIndex) -> HeldOutScore | None:
        """Held-out score of the stack of an image, from the solves of its weights; None without a stack, or before `of`."""
        return self._scores.get((index.contrast, index.set))
