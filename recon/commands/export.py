"""`recon export`: weights of a training run, with a card inside."""

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
    force: bool = False,
) -> None:
    """Make a file of weights, with a card inside, of a training run.

    Parameters
    ----------
    run
        Folder of the run.
    output
        File to write; it ends in .safetensors, and its name is the name of the weights.
    which
        The weights of the best validation, or the last ones.
    half
        Store them in half precision.
    licence
        Licence of the training data, for the card.
    attribution
        Whom the licence wants named.
    notes
        What else a user should know.
    force
        Overwrite an existing file.
    """
    source = run / f"{which}{weights.SUFFIX}"
    if not source.exists():
        raise InputError(f"the run has no {source.name}", run, "train until the first validation, or give --which last")
    card, state = weights.read(source)
    given = {"licence": licence, "attribution": attribution}
    data = {**card.data, **{key: value for key, value in given.items() if value is not None}}
    card = weights.write(
        output, state, replace(card, data=data, notes=card.notes if notes is None else notes), half=half, force=force
    )
    print(describe(card, output, sum(x.numel() for x in state.values())))
