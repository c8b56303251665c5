"""Mask specification: one word of text that, with a shape and a key, defines the mask completely."""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.masks.families import FAMILIES, Family
from kspace.masks.request import Request
from kspace.seeds import RandomGenerator

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class MaskSpec:
    """Mask specification: family, acceleration, calibration, seed and options of the family.

    Written ``FAMILY:AMOUNT,name=value,...``, for example ``random1d:4``, ``poisson2d:8,centre=24,seed=3``,
    ``dagan-g1d:30%``, ``partial:6/8``, ``uniform1d:spacing=3,centre=24``, ``file:mask.png,dc=corner``. AMOUNT is an
    acceleration R, a sampled percentage or a sampled fraction; for ``file`` it is the path.

    Attributes
    ----------
    family
        One of `FAMILIES`.
    acceleration
        Nominal R, at least 1: grid points over sampled points. None where the family does not need it.
    centre
        Number of calibration lines (line families) or side of the calibration square. None for the default of family, R
        and matrix.
    seed
        0 to 2**32 - 1.
    options
        ``((name, value), ...)`` as text, sorted by name.

    Raises
    ------
    InputError
        If the family, an option or a value is unknown, or R is below 1.
    """

    family: str
    acceleration: float | None = None
    centre: int | None = None
    seed: int = 0
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        family = self._family()
        object.__setattr__(self, "options", tuple(sorted((str(name), str(value)) for name, value in self.options)))
        if self.acceleration is not None:
            object.__setattr__(self, "acceleration", _checked_acceleration(float(self.acceleration), self.family))
        if self.acceleration is not None and not family.takes_amount:
            raise self._refuse(f"'{self.family}' has no acceleration", f"write {self.family} alone")
        if self.acceleration is None and family.needs_amount:
            raise self._refuse(f"'{self.family}' needs an acceleration", f"write {self.family}:4 or {self.family}:25%")
        if self.centre is not None and not family.takes_centre:
            raise self._refuse(f"'{self.family}' has no option 'centre'", _known(family))
        if self.centre is not None and self.centre < 1:
            raise self._refuse(f"centre={self.centre} excludes the zero frequency", "the nearest possible is centre=1")
        if not 0 <= self.seed <= MAX_SEED:
            raise self._refuse(
                f"seed={self.seed} is outside of 0 to {MAX_SEED}",
                f"the nearest possible is seed={min(max(self.seed, 0), MAX_SEED)}",
            )
        if "path" in family.options and not dict(self.options).get("path"):
            raise self._refuse(f"'{self.family}' needs a path", f"write {self.family}:PATH")
        self.values()

    @classmethod
    def parse(cls, text: str) -> MaskSpec:
        """Parse a specification; ``MaskSpec.parse(str(spec)) == spec``. Raises InputError for invalid text."""
        name, _, rest = text.strip().partition(":")
        head, _, tail = name.partition(",")
        rest = f"{rest},{tail}" if rest and tail else rest or tail
        if head == "file":
            return cls("file", options=_file_options(text.strip().partition(":")[2]))
        family = cls._lookup(head, text)
        parts = [part.strip() for part in rest.split(",")] if rest else []
        amount = parts.pop(0) if parts and "=" not in parts[0] else None
        named = dict(_split(part, text) for part in parts)
        if len(named) < len(parts):
            raise InputError("an option is given twice", f"mask '{text}'")
        centre, seed = named.pop("centre", None), named.pop("seed", "0")
        return cls(
            family.name,
            None if amount is None else _acceleration(amount, text),
            None if centre is None else _integer("centre", centre, text),
            _integer("seed", seed, text),
            tuple(named.items()),
        )

    def __str__(self) -> str:
        options = dict(self.options)
        family = self._family()
        amount = options.pop("path", None) if self.family == "file" else _amount(self.acceleration, family.percent)
        named = [f"centre={self.centre}"] if self.centre is not None else []
        named += [f"seed={self.seed}"] if self.seed else []
        named += [f"{name}={value}" for name, value in options.items()]
        if amount is None and named and family.takes_amount:
            return f"{self.family}:{','.join(named)}"
        return ",".join([self.family if amount is None else f"{self.family}:{amount}", *named])

    @property
    def fraction(self) -> float | None:
        """Nominal sampled fraction, 1 / R."""
        return None if self.acceleration is None else 1.0 / self.acceleration

    def values(self) -> dict[str, Any]:
        """Values of all options of the family, defaults included."""
        family, given = self._family(), dict(self.options)
        if unknown := sorted(given.keys() - family.options.keys()):
            raise self._refuse(f"'{self.family}' has no option '{unknown[0]}'", _known(family))
        try:
            return {
                name: option.read(given[name]) if name in given else option.default for name, option in family.options.items()
            }
        except ValueError as error:
            raise self._refuse(str(error), _known(family)) from None

    def draw(self, shape: tuple[int, int], key: str = "") -> Tensor:
        """Draw the mask: a pure function of this specification, `shape` and `key`.

        Identical in every process and on every platform; global random generators are neither used nor changed.

        Parameters
        ----------
        shape
            ``(ky, kx)`` of the k-space.
        key
            Further seed, usually the name of the volume, so that all its slices share one mask. The fastMRI families derive
            their seed from it as fastMRI does from the file name.

        Returns
        -------
        Tensor
            Bool, True where sampled: ``(ky, 1)`` for complete phase-encode lines, else ``(ky, kx)``. The zero frequency is
            at index ``n // 2`` of each axis, and always sampled.

        Raises
        ------
        InputError
            If no such mask exists for this shape; the message names the nearest possible value.
        """
        ny, nx = _checked_shape(shape, str(self))
        family = self._family()
        if not family.pure:  # a file can change, so the result must not be cached here
            mask = family.draw(self._request(ny, nx, key))
            return torch.from_numpy((mask[:, None] if mask.ndim == 1 else mask).copy())
        packed, drawn_shape = _drawn(self, ny, nx, key)
        flat = np.unpackbits(np.frombuffer(packed, np.uint8), count=drawn_shape[0] * drawn_shape[1])
        return torch.from_numpy(flat.astype(bool).reshape(drawn_shape))

    @property
    def off_grid(self) -> bool:
        """Whether the samples lie off the Cartesian grid: `trajectory` says where, and there is no mask to draw."""
        return self._family().readouts is not None

    def trajectory(self, shape: tuple[int, int], key: str = "") -> Tensor | None:
        """Where a family off the Cartesian grid samples: a pure function of this specification, `shape` and `key`.

        Parameters
        ----------
        shape
            Matrix ``(y, x)`` of the image.
        key
            As for `draw`.

        Returns
        -------
        Tensor or None
            Float64 ``(readout sample 2)``: kx and ky in cycles per pixel, at most 0.5; None for a family on the grid.

        Raises
        ------
        InputError
            If there is none for this shape.
        """
        readouts = self._family().readouts
        return None if readouts is None else torch.from_numpy(readouts(self._request(*_checked_shape(shape, str(self)), key)))

    def _request(self, ny: int, nx: int, key: str) -> Request:
        text = str(self)
        random = RandomGenerator(f"{text}\n{ny} {nx}\n{key}")
        return Request(text, ny, nx, self.acceleration, self.centre, self.seed, key, self.values(), random)

    def _family(self) -> Family:
        return self._lookup(self.family, self.family)

    @staticmethod
    def _lookup(name: str, text: str) -> Family:
        if name in FAMILIES:
            return FAMILIES[name]
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        fix = f"did you mean '{near[0]}'?" if near else "one of " + ", ".join(FAMILIES)
        raise InputError(f"unknown mask family '{name}'", f"mask '{text}'", fix)

    def _refuse(self, what: str, fix: str) -> InputError:
        return InputError(what, f"mask '{self.family}'", fix)


@functools.lru_cache(maxsize=1024)  # a Poisson disc takes 0.1 s and data loaders draw one per slice; 30 kB each
def _drawn(spec: MaskSpec, ny: int, nx: int, key: str) -> tuple[bytes, tuple[int, int]]:
    mask = spec._family().draw(spec._request(ny, nx, key))
    mask = mask[:, None] if mask.ndim == 1 else mask
    return np.packbits(mask).tobytes(), mask.shape


def full(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """Expand `mask`, bool and broadcastable to ``(1, ..., 1, ky, kx)``, to bool ``(ky, kx)`` of `shape` on the CPU."""
    mask = mask.detach().cpu()
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool; got {mask.dtype}")
    while mask.ndim > 2 and mask.shape[0] == 1:
        mask = mask[0]
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} is not one mask for k-space of {tuple(shape)}") from None


def digest(mask: Tensor, shape: tuple[int, int]) -> str:
    """Hexadecimal SHA-256 of the mask, bool ``(ky, 1)`` or ``(ky, kx)``, expanded to the full grid `shape`."""
    ny, nx = shape
    bits = np.packbits(full(mask, shape).numpy())
    return hashlib.sha256(f"mask {ny} {nx}\n".encode() + bits.tobytes()).hexdigest()


def acceleration(mask: Tensor, shape: tuple[int, int]) -> float:
    """Actual acceleration R of `mask`: grid points ``(ky, kx)`` over sampled points; infinite for an empty mask."""
    n_sampled = int(full(mask, shape).sum())
    return shape[0] * shape[1] / n_sampled if n_sampled else float("inf")


def _checked_shape(shape: tuple[int, int], text: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise InputError(f"the shape must be (ky, kx); got {tuple(shape)}", f"mask '{text}'")
    ny, nx = (int(n) for n in shape)
    if ny < 1 or nx < 1:
        raise InputError(
            f"k-space of shape {ny} x {nx} has no samples",
            f"mask '{text}'",
            f"the nearest possible is {max(ny, 1)} x {max(nx, 1)}",
        )
    return ny, nx


def _acceleration(amount: str, text: str) -> float:
    """Acceleration R from ``4``, ``25%`` or ``6/8``."""
    match = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(%|/(\d+\.?\d*))?", amount)
    value = float(match[1]) if match else 0.0
    if match is None or value == 0 or (match[3] and float(match[3]) == 0):
        raise InputError(
            f"'{amount}' is not an acceleration, percentage or fraction", f"mask '{text}'", "write for example 4, 25% or 6/8"
        )
    if match[3]:
        return float(match[3]) / value
    return 100.0 / value if match[2] else value


def _amount(acceleration: float | None, percent: bool) -> str | None:
    """Shortest text that parses to exactly this acceleration."""
    if acceleration is None:
        return None
    as_r, as_percent = f"{acceleration:g}", f"{100.0 / acceleration:g}%"
    for text in (as_percent, as_r) if percent else (as_r, as_percent):
        if _acceleration(text, text) == acceleration:
            return text
    return repr(acceleration)


def _checked_acceleration(value: float, family: str) -> float:
    if not 1 <= value < float("inf"):
        what = f"acceleration {value:g} would sample {100 / value:g} % of k-space" if value > 0 else f"acceleration {value:g}"
        raise InputError(
            what, f"mask '{family}'", "the nearest possible acceleration is 1" if value < 1 else "give a finite one"
        )
    return value


def _split(part: str, text: str) -> tuple[str, str]:
    name, equals, value = (piece.strip() for piece in part.partition("="))
    if not (name and equals and value):
        raise InputError(f"'{part}' is not name=value", f"mask '{text}'", "write for example poisson2d:8,centre=24,seed=3")
    return ("centre" if name == "center" else name), value


def _integer(name: str, value: str, text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,20}", value):
        raise InputError(f"{name}={value} is not a whole number", f"mask '{text}'")
    return int(value)


def _file_options(rest: str) -> tuple[tuple[str, str], ...]:
    """Path and trailing options; other commas are part of the path."""
    names = "|".join(name for name in FAMILIES["file"].options if name != "path")
    tail = re.search(rf"(?:,(?:{names})=[^,]*)*$", rest)
    options = [_split(part, rest) for part in tail[0].split(",")[1:]] if tail else []
    return (("path", rest[: tail.start()] if tail else rest), *options)


def _known(family: Family) -> str:
    names = [*(["centre"] if family.takes_centre else []), "seed"]
    names += [f"{name}={option.meaning}" for name, option in family.options.items() if name != "path"]
    return "its options are " + ", ".join(names)
