"""`recon export`: weights of a training run with their model card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from kspace.errors import InputError
from recon.commands.models import describe
from recon.methods import weights


def export(
    run: Path,
    output: Path,
    which: Literal["best", "last"] = "best",
    half: bool = False,
    licence: str | None = None,
    attribution: str | None = None,
    notes: str | None = None,
    base: Path | None = None,
    force: bool = False,
) -> None:
    """Export the weights of a training run, with their model card, to one file.

    Parameters
    ----------
    run
        Folder of the training run.
    output
        Output file, ending in .safetensors; its name becomes the name of the weights.
    which
        Weights of the best validation, or the last ones.
    half
        Store half-precision weights.
    licence
        Licence of the training data, stored in the card.
    attribution
        Attribution that the licence requires.
    notes
        Notes for users, stored in the card.
    base
        File of weights in the folder of the output whose equal weights are left out (a frozen first stage, for example). Both
        files are then needed.
    force
        Overwrite an existing file.
    """
    source = run / f"{which}{weights.SUFFIX}"
    if not source.exists():
        raise InputError(f"the run has no {source.name}", run, "train until the first validation, or give --which last")
    card, state = weights.read(source)
    given = {"licence": licence, "attribution": attribution}
    data = {**card.data, **{key: value for key, value in given.items() if value is not None}}
    card = replace(card, data=data, notes=card.notes if notes is None else notes)
    card = weights.write(output, state, card, half=half, force=force, base=base)
    print(describe(card, output, sum(x.numel() for x in state.values())))
