"""A file of weights that another package saved: read without running what it holds, its network told by its tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from kspace.errors import InputError
from recon.methods import weights
from recon.methods.pretrained.deepinv_networks import DeepinvNetwork
from recon.methods.pretrained.fastmri_networks import FastmriNetwork

SUFFIXES = (".pt", ".pth", ".ckpt")
KINDS = (FastmriNetwork, DeepinvNetwork)


def load(path: Path, device: torch.device | str = "cpu") -> FastmriNetwork | DeepinvNetwork:
    """The network whose weights a file holds: a saved ``state_dict``, or a dictionary that has one under ``state_dict``.

    Numbers of cascades, channels and levels are those of the weights. Nothing but tensors and plain containers is read.

    Raises
    ------
    InputError
        If the file is absent, holds anything else, is of another network, or its package is not installed.
    """
    state = _state(path)
    for kind in KINDS:
        try:
            found = kind.find(state)
        except ImportError as error:
            raise InputError(
                f"{kind.package} is not installed", path, f"pip install 'mri-gan-recon[{kind.package}]'"
            ) from error
        if found is not None:
            break
    else:
        raise InputError(
            "neither a VarNet or U-Net of fastmri nor a MoDL of deepinv",
            path,
            "save the state_dict of one, with torch.save",
        )
    network, own = found
    wrong = [name for name, x in network.state_dict().items() if name not in own or own[name].shape != x.shape]
    if wrong or set(own) - set(network.state_dict()):
        name = wrong[0] if wrong else next(iter(set(own) - set(network.state_dict())))
        raise InputError(
            f"not the weights of a {type(network).__name__} of {kind.package}: {name} is missing or does not fit", path
        )
    network.load_state_dict(own)
    network = network.eval().requires_grad_(False).to(device)
    return kind(network, path.stem, weights.digest(own), torch.device(device))


def _state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError("there is no such file of weights", path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler makes of foreign bytes
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(
            f"damaged, or more than tensors ({reason})", path, "save the state_dict alone, with torch.save"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise InputError("no state_dict", path, "save the state_dict of a network, with torch.save")
    return {str(name): x for name, x in found.items()}
