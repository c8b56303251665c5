"""What networks of other packages have in common: weights by name, as packages save them, and their identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

Found = tuple[nn.Module, dict[str, Tensor]]
"""A network of the sizes of a file's tensors, and these tensors by its own names."""


@dataclass(frozen=True, eq=False)
class ForeignNetwork:
    """A network of another package, to be called ``(y, op) -> image``.

    Attributes
    ----------
    network
        In evaluation mode, on `device`.
    name
        The file's name without suffix.
    sha256
        Of its weights.
    device
        Where it runs; images come back on the device of `y`.
    """

    network: nn.Module = field(repr=False)
    name: str
    sha256: str
    device: torch.device

    package: ClassVar[str]

    @property
    def kind(self) -> str:
        """The network's class."""
        return type(self.network).__name__


def below(state: Mapping[str, Tensor], known: str) -> dict[str, Tensor] | None:
    """The tensors, of any shape, that stand beside the one called `known`, without the prefix of a Lightning module."""
    prefix = next((name.removesuffix(known) for name in state if name.endswith(known)), None)
    if prefix is None:
        return None
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
