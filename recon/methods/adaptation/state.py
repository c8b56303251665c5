"""File of an adaptation: where it stands, so that it can go on; numbers and text only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.io.atomic import atomic_write
from kspace.operators import Sense
from recon.methods.adaptation.adapt import Recipe, State

SUFFIX = ".adaptation"
FORMAT = "recon adaptation 1"


def digest_of(cases: Sequence[tuple[Tensor, Sense]], weights_sha256: str, recipe: Recipe) -> str:
    """Sha256 of everything but time that an adaptation depends on: samples, masks and coil maps, weights and recipe.

    Parameters
    ----------
    cases
        k-space ``(coil ky kx)`` and operator of each slice.
    weights_sha256
        Of the generator before adaptation.
    recipe
        Its time limit and number of steps may change when an adaptation goes on.
    """
    same = {name: value for name, value in asdict(recipe).items() if name not in ("seconds", "steps")}
    found = hashlib.sha256(f"{weights_sha256}\n{json.dumps(same, sort_keys=True)}\n".encode())
    for y, op in cases:
        for x in (torch.where(op.mask, y, 0), op.mask, op.maps):
            found.update(f"{x.dtype} {tuple(x.shape)}\n".encode())
            found.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def state_path(weights: Path) -> Path:
    """Where the state of the adaptation that gave `weights` lies."""
    return weights.with_suffix(SUFFIX)


def write_state(path: Path, state: State, digest: str) -> None:
    """Write the state, atomically, over an earlier one.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {
        f"{kind}/{name}": x for kind, group in (("values", state.values), ("best", state.best)) for name, x in group.items()
    }
    tensors |= {f"adam/{name}/{key}": x for name, moments in state.optimiser.items() for key, x in moments.items()}
    about = {"digest": digest, "step": state.step, "errors": {str(step): e for step, e in state.errors.items()}}
    flat = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
    with atomic_write(path, "the state of the adaptation cannot be written", make_folder=True) as beside:
        save_file(flat, beside, metadata={"format": FORMAT, "about": json.dumps(about, sort_keys=True)})


def read_state(path: Path, digest: str) -> State:
    """The state of an adaptation of the same scan, weights and recipe.

    Raises
    ------
    InputError
        If the file is damaged, foreign, or of another adaptation.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = _about(file.metadata() or {}, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError) as error:
        raise InputError("damaged, or no state of an adaptation", path, "delete it, to begin again") from error
    if about["digest"] != digest:
        raise InputError(
            "the adaptation of another scan, other weights or another recipe", path, "give another --save-weights, or --force"
        )
    state = State(step=int(about["step"]), errors={int(step): float(e) for step, e in about["errors"].items()})
    for name, x in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "adam":
            parameter, _, key = rest.rpartition("/")
            state.optimiser.setdefault(parameter, {})[key] = x
        else:
            (state.values if kind == "values" else state.best)[rest] = x
    return state


def _about(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    try:
        found = json.loads(metadata["about"])
        if metadata["format"] != FORMAT or not {"digest", "step", "errors"} <= found.keys():
            raise ValueError
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError("no state of an adaptation of this version", path, "delete it, to begin again") from error
    about: dict[str, Any] = found
    return about
