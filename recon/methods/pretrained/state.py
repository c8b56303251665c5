"""Weights by name, as packages save them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

Found = tuple[nn.Module, dict[str, Tensor]]
"""A network of the sizes of a file's tensors, and these tensors by its own names."""


def below(state: Mapping[str, Tensor], known: str) -> dict[str, Tensor] | None:
    """The tensors, of any shape, that stand beside the one called `known`, without the prefix of a Lightning module."""
    prefix = next((name.removesuffix(known) for name in state if name.endswith(known)), None)
    if prefix is None:
        return None
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
