"""The methods of a comparison: classical ones, generators, and BART's, all called ``(y, op) -> image``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kspace.errors import InputError
from kspace.masks import MaskSpec
from kspace.operators import ForwardModel
from models.systems import find_systems
from recon.compare.store import TAKEN
from recon.methods import bart as bart_program
from recon.methods import classical
from recon.methods.classical import Reconstructor
from recon.methods.generator import GeneratorReconstructor
from recon.methods.precision import Precision
from recon.methods.pretrained import load as pretrained
from recon.methods.refine import Refinement
from recon.methods.weights import VARIANTS

CLASSICAL, GENERATOR, BART = "classical", "generator", "bart"
LABELS = {
    "zero-filled": "Zero-filled",
    "sense": "SENSE",
    "l1-wavelet": "L1-wavelet",
    "tv": "TV",
    "bart-l1-wavelet": "BART L1-wavelet",
    "bart-tv": "BART TV",
    "iagan": "IAGAN",
}
MEAN = "mean:"  # of the images of several generators: mean:srgan:mdcsrn
REFINED: dict[str, Refinement] = {"+residual": "residual", "+stack": "stack"}
# Weights that suit whitened brains; they are tuned where --tune-on says on what.
BARTS: dict[str, Callable[[], bart_program.Pics]] = {
    "bart-l1-wavelet": lambda: bart_program.Pics("W", 3e-3),
    "bart-tv": lambda: bart_program.Pics("T", 8e-3),
}


@dataclass(frozen=True, eq=False)
class MeanOfMembers:
    """An ensemble, called ``(y, op) -> image``: the mean of the complex images of its members, complex ``(*batch y x)``.

    Lyu, Shan and Wang 2019 (arXiv 1907.03063) join members by a further network; a mean needs no training.
    """

    members: tuple[Reconstructor, ...]
    sha256: str

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """From k-space, complex ``(*batch coil ky kx)``."""
        first, *others = (member(y, op) for member in self.members)
        return sum(others, start=first) / len(self.members)


@dataclass(frozen=True, eq=False)
class ComparedMethod:
    """A method that takes part.

    Attributes
    ----------
    name, label
        As it was asked for, and as tables call it.
    family
        ``classical``, ``generator`` or ``bart``.
    reconstruct
        ``(y, op) -> image``, complex ``(*batch y x)``.
    details
        What determines it, for the record.
    tuned
        By mask, the regularisation weight that was chosen; the default counts elsewhere.
    """

    name: str
    label: str
    family: str
    reconstruct: Reconstructor
    details: dict[str, str] = field(default_factory=dict)
    tuned: dict[str, float] = field(default_factory=dict)

    @property
    def weight(self) -> float | None:
        """The default regularisation weight; None where there is none to tune."""
        value = self.options.get("lamda")
        return None if value is None else float(value)

    @property
    def options(self) -> dict[str, Any]:
        """The options of a classical method."""
        return {} if self.family == GENERATOR else _options(self.reconstruct)

    @property
    def generator(self) -> GeneratorReconstructor | None:
        """The network, where there is one, refined or not."""
        network = getattr(self.reconstruct, "network", self.reconstruct)
        return network if isinstance(network, GeneratorReconstructor) else None

    @property
    def sha256(self) -> str | None:
        """Of the weights of a network; None where there are none."""
        network = getattr(self.reconstruct, "network", self.reconstruct)
        found: str | None = getattr(self.reconstruct, "sha256", getattr(network, "sha256", None))
        return found

    def at(self, weight: float) -> Reconstructor:
        """The reconstructor with another regularisation weight."""
        return replace(self.reconstruct, lamda=weight)  # type: ignore[type-var]

    def under(self, mask: str) -> Reconstructor:
        """The reconstructor with the weight that was tuned for `mask`."""
        return self.at(self.tuned[mask]) if mask in self.tuned else self.reconstruct

    def says(self) -> dict[str, Any]:
        """What `compare.json` says of it."""
        return {
            "name": self.name,
            "label": self.label,
            "family": self.family,
            "details": self.details,
            "weights_sha256": self.sha256,
            "options": self.options,
            "tuned": dict(self.tuned),
            "outside": {},
            "fits": {},
        }


def choose(
    names: str | None, weights: Sequence[str] = (), bart: bool = False, device: str = "auto", precision: Precision = "auto"
) -> list[ComparedMethod]:
    """The methods called `names` (separated by commas), with own `weights` (``name=file``), and BART's.

    A file of weights is one of ours, or of a network of another package (`recon.methods.pretrained`).
    Without names: the classical methods of `recon.methods.classical.unasked`, the bundled generators of `by_default`, and
    those of `weights`. A generator may be followed by ``+residual`` or ``+stack`` (`recon.methods.refine`,
    `recon.methods.stack`); ``mean:A:B`` is the mean of the images of A and B.

    Raises
    ------
    InputError
        If one is not known or given twice, a file of weights cannot be used, or BART is asked for and not installed.
    """
    from recon.methods.weights import bundled

    own = _own_weights(weights)
    if names is None:
        chosen = [*classical.unasked(), *(name for name in by_default() if name not in own), *own]
    else:
        chosen = [name.strip() for name in names.split(",") if name.strip()]
    chosen += [name for name in BARTS if bart and name not in chosen]
    if twice := next((name for name in chosen if chosen.count(name) > 1), None):
        raise InputError(f"{twice} is given twice", "--methods", "leave one out")
    members = [member for name in chosen for member in _members(name)]
    if unused := [name for name in own if name not in map(_base, members)]:
        raise InputError(f"weights for {unused[0]}, which is none of the methods", "--weights", "name it in --methods too")
    if not chosen:
        raise InputError("no methods", "--methods", "name some, e.g. --methods sense,tv")
    known = list(dict.fromkeys([*classical.METHODS, *BARTS, *bundled(), *own]))
    for name in members:  # all names before any weights are read
        if _base(name) not in known or (name != _base(name) and _base(name) in (*classical.METHODS, *BARTS)):
            raise InputError(
                f"there is no method '{name}'", "--methods", f"choose from {', '.join(known)}, or --weights name=FILE"
            )
    return [_make(name, own, device, precision) for name in chosen]


def by_default(families: Collection[str] | None = None) -> list[str]:
    """Bundled generators that take part unasked: not those that are fitted to each scan, which takes minutes a slice.

    Parameters
    ----------
    families
        Of the masks; generators that were trained on none of them are left out. None: any.
    """
    from recon.methods.weights import bundled, read_card

    found = []
    for name, path in bundled().items():
        card = read_card(path)
        known = {MaskSpec.parse(mask).family for mask in card.envelope.get("masks", ())}
        fitted = find_systems()[card.system][card.preset].generator.fitted
        if not fitted and (families is None or not known or known & set(families)):
            found.append(name)
    return found


def _make(name: str, weights: Mapping[str, Path], device: str, precision: Precision) -> ComparedMethod:
    label = _label(name)
    if name.startswith(MEAN):
        return _mean(name, label, [_make(member, weights, device, precision) for member in _members(name)])
    if name in classical.METHODS:
        made = classical.make(name)
        return ComparedMethod(name, label, CLASSICAL, made, {"reconstructor": repr(made)})
    if name in BARTS:
        pics = BARTS[name]()
        return ComparedMethod(
            name, label, BART, pics, {"command": f"bart pics -S {' '.join(pics.options)}", "bart": bart_program.version()}
        )
    from recon.methods.choose import choose as choose_one
    from recon.methods.choose import refined

    base = _base(name)
    refine = REFINED.get(name.removeprefix(base), "none")
    own = weights.get(base)
    if own is not None and own.suffix in pretrained.SUFFIXES:
        return _foreign(name, label, own, device)
    if own is None:
        network = choose_one(base, device=device, precision=precision).generator
    else:
        from recon.methods import generator

        network = generator.load(own, _place(device), base if base in VARIANTS else None, precision)
    assert network is not None
    card = network.card
    details = {
        "system": card.system,
        "preset": card.preset,
        "weights": card.name,
        "precision": network.precision,
        "envelope": str(dict(card.envelope)),
        "refine": refine,
    }
    return ComparedMethod(name, label, GENERATOR, refined(network, refine), details)


def _mean(name: str, label: str, members: Sequence[ComparedMethod]) -> ComparedMethod:
    """The ensemble of `members`, which are all generators."""
    if other := next((member.name for member in members if member.family != GENERATOR), None):
        raise InputError(f"{other} is no generator", "--methods", "name generators after mean:, e.g. mean:srgan:mdcsrn")
    if len(members) < 2:
        raise InputError(f"'{name}' names one member", "--methods", "name several, e.g. mean:srgan:mdcsrn")
    digest = hashlib.sha256(" ".join(str(member.sha256) for member in members).encode()).hexdigest()
    details = {member.name: str(member.sha256) for member in members}
    return ComparedMethod(
        name, label, GENERATOR, MeanOfMembers(tuple(member.reconstruct for member in members), digest), details
    )


def _members(name: str) -> list[str]:
    """The methods that `name` stands for: those of a mean, else itself."""
    return name.removeprefix(MEAN).split(":") if name.startswith(MEAN) else [name]


def _foreign(name: str, label: str, path: Path, device: str) -> ComparedMethod:
    """A network of another package."""
    if name != _base(name):
        raise InputError(f"{path.name} is of another package, and is not refined", "--methods", f"ask for {_base(name)}")
    network = pretrained.load(path, _place(device))
    details = {"package": network.package, "network": network.kind, "weights": network.name, "refine": "none"}
    return ComparedMethod(name, label, GENERATOR, network, details)


def _base(name: str) -> str:
    """A method's name without what follows it."""
    return next((name.removesuffix(suffix) for suffix in REFINED if name.endswith(suffix)), name)


def _label(name: str) -> str:
    """Name of a method in tables: declared by its class, or by the system that its bundled weights are of."""
    if name.startswith(MEAN):
        return f"mean of {', '.join(map(_label, _members(name)))}"
    if name in classical.METHODS:
        return str(getattr(classical.METHODS[name], "label", LABELS.get(name, name)))
    if name != (base := _base(name)):
        return f"{_label(base)} + {name.removeprefix(base).strip('+')}"
    presets = find_systems().get(name)
    return LABELS.get(name, name) if presets is None else presets["raw"].label


def _place(device: str) -> str:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device found", "--device", "use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _own_weights(given: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise InputError(f"'{text}' is not name=file", "--weights", "write for example --weights mine=run/mine.safetensors")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name) or name in TAKEN:
            raise InputError(f"'{name}' is no name for a method", "--weights", "use letters, digits, ., _, + and -")
        if name in classical.METHODS or name in BARTS:
            raise InputError(f"{name} has no weights", "--weights", "choose another name")
        if name in found:
            raise InputError(f"weights for {name} are given twice", "--weights", "leave one out")
        found[name] = Path(path)
    return found


def _options(reconstructor: Any) -> dict[str, Any]:
    return {f.name: getattr(reconstructor, f.name) for f in fields(reconstructor)} if is_dataclass(reconstructor) else {}


def call(reconstruct: Reconstructor, y: Tensor, op: ForwardModel) -> Tensor:
    """The image of one slice, checked: complex ``(y x)`` and finite.

    Raises
    ------
    ValueError
        If it is not.
    """
    import torch

    image = reconstruct(y, op)
    if image.shape != op.shape:
        raise ValueError(f"an image of shape {tuple(image.shape)}, expected {op.shape}")
    if not bool(torch.isfinite(image.abs()).all()):
        raise ValueError("the image is not finite")
    return image
