"""Calibration values in the card of the weights: thresholds, conformal factors and image statistics of validation volumes.

`recon calibrate` makes them; a card without them gives the defaults below and no interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kspace.errors import InputError

VERSION = 1
NEAR = 1.6  # factor of R within which a calibration is used


@dataclass(frozen=True)
class Thresholds:
    """Limits of the verdicts.

    Attributes
    ----------
    ratio, ratio_amber, local, local_amber
        Of the certificate's ratios to the companion: red, and amber.
    share
        Amber of the share of the prior; None: not calibrated.
    gain
        Amber of the ratio of gains; None: not calibrated.
    distance
        Amber of the distance of image statistics; None: not calibrated.
    """

    ratio: float = 50.0
    ratio_amber: float = 10.0
    local: float = 50.0
    local_amber: float = 10.0
    share: float | None = None
    gain: float | None = None
    distance: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"threshold {item.name} is {value}, expected a positive number", "the thresholds")
        for name in ("ratio", "local"):
            red, amber = getattr(self, name), getattr(self, f"{name}_amber")
            if red < amber:
                raise InputError(
                    f"{name} turns red at {red:g} and amber at {amber:g}, which is more",
                    "the thresholds",
                    "recon calibrate makes them anew",
                )


@dataclass(frozen=True)
class Setting:
    """Calibration for one mask family, acceleration, and one coil or several.

    Attributes
    ----------
    key
        ``random1d:4``, with ``,1coil`` for one coil.
    kind
        Of the mask: see `recon.evidence.masks.kind_of`.
    acceleration
        Actual R.
    n_volumes
        How many volumes it is from.
    thresholds
        By refinement.
    factors
        Conformal factor of the standard deviation, by refinement.
    statistics
        Median and scale of each image statistic.
    profile
        Share of acquired samples by radius.
    """

    key: str
    kind: str
    acceleration: float
    n_volumes: int
    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    statistics: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """What a card says for the evidence.

    Attributes
    ----------
    settings
        One for each mask family, acceleration and kind of coil array.
    nominal
        Nominal coverage of the interval.
    k
        Reconstructions that the factors hold for.
    profiles
        Kind, R and share of acquired samples by radius of each mask that was trained on.
    calibration_lines
        Smallest and largest share of the matrix that the sampled centre of these masks has; None: unknown.
    """

    settings: tuple[Setting, ...] = ()
    nominal: float = 0.9
    k: int = 4
    profiles: tuple[tuple[str, float, tuple[float, ...]], ...] = ()
    calibration_lines: tuple[float, float] | None = None

    @classmethod
    def of(cls, found: Mapping[str, Any], where: str) -> Calibration:
        """Read the entry ``calibration`` of a card, which may be empty.

        Raises
        ------
        InputError
            If it cannot be read, or its values contradict each other.
        """
        if not found:
            return cls()
        try:
            if found["version"] != VERSION:
                raise InputError(f"calibration of version {found['version']}", where, "run recon calibrate again")
            nominal = float(found["nominal"])
            if not 0 < nominal < 1:
                raise InputError(f"nominal coverage {nominal:g} is not between 0 and 1", where, "run recon calibrate again")
            lines = found.get("calibration_lines")
            return cls(
                tuple(_setting(key, entry) for key, entry in found["settings"].items()),
                nominal,
                int(found["k"]),
                tuple((str(kind), float(r), tuple(map(float, p))) for kind, r, p in found.get("profiles", ())),
                None if lines is None else (float(lines[0]), float(lines[1])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the calibration of the card cannot be read ({error})", where, "run recon calibrate") from error

    def nearest(self, kind: str, acceleration: float, n_coils: int) -> Setting | None:
        """The setting of the same kind of mask and coil array whose R is nearest; None where none is near."""
        one = n_coils == 1
        alike = [s for s in self.settings if s.kind == kind and s.key.endswith(",1coil") == one]

        def away(setting: Setting) -> float:
            return abs(math.log(setting.acceleration / max(acceleration, 1e-6)))

        best = min(alike, key=away, default=None)
        return best if best is not None and away(best) <= math.log(NEAR) else None


def _setting(key: str, entry: Mapping[str, Any]) -> Setting:
    factors = {str(name): float(value) for name, value in entry["factors"].items()}
    for name, value in factors.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"conformal factor {value} of {name}", f"calibration {key}", "run recon calibrate again")
    return Setting(
        key,
        str(entry["kind"]),
        float(entry["acceleration"]),
        int(entry["n_volumes"]),
        {str(name): Thresholds(**values) for name, values in entry["thresholds"].items()},
        factors,
        {str(name): (float(centre), float(scale)) for name, (centre, scale) in entry["statistics"].items()},
    )
