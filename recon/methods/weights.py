"""Weights that are handed around: safetensors with a card inside that says what they are, and checks that they are that.

Nothing here runs code from a file: safetensors holds numbers and text only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.io.atomic import atomic_write

SUFFIX = ".safetensors"
FORMAT = "recon generator 1"
_PACKAGE = "models"
# Methods that are other options of a system's generator, on the same weights: system, and section ``generator``.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # At a rate of 1e-3 the error at held-out samples rises for the first 50 steps, and the stage would end.
    "iagan": ("csgm", {"fit": {"adaptation": 300, "weights_rate": 3e-4}})
}


@dataclass(frozen=True)
class Card:
    """What a file of weights says of itself.

    Attributes
    ----------
    name
        The file's name without suffix.
    config
        Every option of the system, from which `models.systems.build_generator` makes the network.
    envelope
        What it was trained for: ``masks``, ``acceleration``, ``coils``, ``matrix``, ``snr``, ``anatomies``, ``contrasts``,
        ``field_t``; what is absent is not known.
    data
        What it was trained on: ``source``, ``simulated``, ``n_train``, ``licence``, ``attribution``.
    training
        ``steps``, ``epochs``, ``batch_size``, ``seed``, and whether the weights are a running average.
    metrics
        On the validation data, averaged over its volumes.
    versions
        Of this project and the libraries below it.
    notes
        Whatever else a user should know.
    calibration
        What ``recon calibrate`` measured on validation volumes: see `recon.evidence.calibration`; empty: nothing.
    sha256
        Of the names, types, shapes and values of the weights (`digest`).
    """

    name: str
    config: Mapping[str, Any]
    envelope: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def system(self) -> str:
        """The system whose generator this is."""
        return str(self.config["system"])

    @property
    def preset(self) -> str:
        """Which preset of it."""
        return str(self.config["preset"])


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and values of tensors of any shape."""
    found = hashlib.sha256()
    for name in sorted(state):
        x = state[name].detach().cpu().contiguous()
        found.update(f"{name}\n{x.dtype} {tuple(x.shape)}\n".encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def write(
    path: Path, state: Mapping[str, Tensor], card: Card, *, half: bool = False, force: bool = False, base: Path | None = None
) -> Card:
    """Write weights with their card, atomically.

    Parameters
    ----------
    path
        Ends in ``.safetensors``. The card takes the file's name.
    state
        The generator's `state_dict`: tensors of any shape.
    card
        Its name and hash are filled in.
    half
        Store floating-point weights in half precision.
    force
        Overwrite an existing file.
    base
        Another file of weights in the same folder, without a base of its own: tensors that it holds too are left out, and read
        from there. The hash of the card is that of all tensors nevertheless.

    Returns
    -------
    Card
        As written.

    Raises
    ------
    InputError
        If the file exists, its name is not one for weights, `base` is no such file, or it cannot be written.
    """
    from safetensors.torch import save_file

    if path.suffix != SUFFIX:
        raise InputError(f"weights are files that end in {SUFFIX}", path)
    if path.exists() and not force:
        raise InputError("the file exists", path, "choose another name, or give --force")
    tensors = {
        name: (x.half() if half and x.is_floating_point() else x).detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, x in state.items()
    }
    if bad := [name for name, x in tensors.items() if x.is_floating_point() and not bool(torch.isfinite(x).all())]:
        raise InputError(f"the weights {bad[0]} are not finite{' in half precision' if half else ''}", path)
    card = replace(card, name=path.stem, sha256=digest(tensors))
    metadata = {"format": FORMAT, "card": json.dumps(asdict(card), sort_keys=True)}
    if base is not None:
        beside = base.resolve().parent == path.resolve().parent and base.resolve() != path.resolve()
        if not beside or base_of(base) is not None:
            raise InputError("the base must be another file beside the weights, and have no base itself", base)
        held = _read(base, values=True)[1]
        shared = sorted(name for name, x in tensors.items() if name in held and _same(x, held[name]))
        metadata |= {"base": base.stem, "shared": json.dumps(shared)}
        tensors = {name: x for name, x in tensors.items() if name not in shared}
    with atomic_write(path, "the weights cannot be written", make_folder=True) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return card


def base_of(path: Path) -> Path | None:
    """The file beside `path` that holds the rest of its tensors; None where it holds all.

    Raises
    ------
    InputError
        If the file cannot be read, or names a base that is no file beside it.
    """
    name = _open(path, values=False)[0].get("base", "")
    if not name:
        return None
    if Path(name).name != name:
        raise InputError(f"the weights name a base outside of their folder ({name})", path, "fetch the file again")
    return path.with_name(name + SUFFIX)


def _same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit: -0 is not 0, as in `digest`."""
    return digest({"": a}) == digest({"": b})


def restate(path: Path, output: Path, **changes: Any) -> Card:
    """Write the weights of `path`, bit for bit, to `output`, which may be the same file, with changed entries of the card.

    Raises
    ------
    InputError
        As `read` and `write`.
    """
    card, state = _read(path, values=True)
    if digest(state) != card.sha256:
        raise InputError("the weights are damaged: their sha256 is not that of the card", path, "fetch the file again")
    same = output.exists() and output.samefile(path)
    base = base_of(path) if output.resolve().parent == path.resolve().parent else None
    return write(output, state, replace(card, **changes), force=same, base=base)


def read_card(path: Path) -> Card:
    """The card of a file of weights, without its numbers.

    Raises
    ------
    InputError
        If the file is absent, damaged, not one of ours, or not called what its card says.
    """
    return _read(path, values=False)[0]


def read(path: Path, system: str | None = None) -> tuple[Card, dict[str, Tensor]]:
    """Card and weights, in single precision.

    Parameters
    ----------
    path
        The file.
    system
        Refuse weights of any other system.

    Raises
    ------
    InputError
        As `read_card`, and if the numbers are not those that the card was written for.
    """
    card, state = _read(path, values=True)
    if system is not None and card.system != VARIANTS.get(system, (system,))[0]:
        raise InputError(f"these are weights of {card.system}, not of {system}", path, f"use --method {card.system}")
    if digest(state) != card.sha256:
        raise InputError("the weights are damaged: their sha256 is not that of the card", path, "fetch the file again")
    return card, {name: x.float() if x.is_floating_point() else x for name, x in state.items()}


def bundled() -> dict[str, Path]:
    """Files of the bundled weights, by name."""
    folder = Path(str(resources.files(_PACKAGE))) / "weights"
    found = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    files = {path.stem: path for path in found if _is_ours(path)}
    return files | {name: files[system] for name, (system, _) in VARIANTS.items() if system in files}


def as_variant(card: Card, name: str) -> Card:
    """The card of the method `name`: with the options of a variant, or as it is."""
    if name not in VARIANTS:
        return card
    return replace(card, name=name, config={**card.config, "generator": _merged(card.config["generator"], VARIANTS[name][1])})


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {**old, **{k: _merged(old.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in new.items()}}


def find(name_or_path: str | Path) -> Path:
    """File of bundled weights, by name, or of own ones, by path.

    Raises
    ------
    InputError
        If there is none.
    """
    path = Path(name_or_path)
    known = bundled()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if path.suffix == SUFFIX or path.exists():
        return path
    choose = (
        f"the bundled ones are {', '.join(known)}" if known else "none are bundled with this version: give the path of a file"
    )
    raise InputError(
        f"there are no weights called '{name_or_path}'", fix=f"{choose}; recon export makes a file of a training run"
    )


def _is_ours(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return bool((file.metadata() or {}).get("format") == FORMAT)
    except (SafetensorError, OSError):
        return True  # so that a damaged file is reported when it is read, not passed over


def _read(path: Path, values: bool) -> tuple[Card, dict[str, Tensor]]:
    metadata, state = _open(path, values)
    card = _card(metadata.get("card", ""), path)
    base = base_of(path) if values else None
    if base is not None:
        if not base.is_file():
            raise InputError(
                f"the rest of these weights is in {base.name}, which is not beside them", path, "keep both together"
            )
        held = _open(base, values)[1]
        try:
            state |= {name: held[name] for name in json.loads(metadata["shared"])}
        except (KeyError, TypeError, ValueError) as error:
            what = f"{base.name} does not hold the rest of these weights ({error})"
            raise InputError(what, path, "fetch both files again") from error
    return card, state


def _open(path: Path, values: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError("there is no such file of weights" if not path.exists() else "a folder, not a file of weights", path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()} if values else {}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        reason = "damaged or truncated, or no safetensors file"
        raise InputError(
            f"the weights cannot be read: {reason} ({error})", path, "fetch it again; no other format is read"
        ) from error
    if metadata.get("format") != FORMAT:
        raise InputError("a safetensors file without our card", path, "weights are made by recon export")
    return metadata, state


def _card(text: str, path: Path) -> Card:
    try:
        entries = json.loads(text)
        known = {f.name: type(f.default) if isinstance(f.default, str) else None for f in fields(Card)}
        if not isinstance(entries, dict) or set(entries) - set(known):
            raise ValueError("unknown entries")
        card = Card(**entries)
        for name in known:
            if not isinstance(getattr(card, name), str if name in ("name", "notes", "sha256") else dict):
                raise ValueError(f"entry {name}")
        _ = card.system, card.preset
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"the card of the weights cannot be read ({error})", path, "fetch the file again") from error
    if card.name != path.stem:
        raise InputError(
            f"the file was renamed: its card says '{card.name}'",
            path,
            f"call it {card.name}{SUFFIX} again, or use recon export",
        )
    return card
