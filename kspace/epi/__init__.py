"""Echo-planar readouts on the Cartesian grid: ramp sampling, direction of the readouts, odd-even phase."""

from kspace.epi.directions import (
    alternates,
    lines_are_turned,
    mirrored_neighbours,
    navigators_are_turned,
    shot_parity,
    with_navigator_directions,
)
from kspace.epi.entropy import estimate_phase
from kspace.epi.navigators import ShotPhase, group_phases, navigator_phase, shot_phase
from kspace.epi.phase import OddEvenPhase
from kspace.epi.place import GHOST, Placed, coil_groups, count_shots, is_delayed, place_lines
from kspace.epi.plan import EpiPlan, plan_readouts
from kspace.epi.regrid import Readout, regridding_matrix, shifting_matrix
from kspace.epi.trapezoid import Trapezoid, read_trapezoid

__all__ = [
    "GHOST",
    "EpiPlan",
    "OddEvenPhase",
    "Placed",
    "Readout",
    "ShotPhase",
    "Trapezoid",
    "alternates",
    "coil_groups",
    "count_shots",
    "estimate_phase",
    "group_phases",
    "is_delayed",
    "lines_are_turned",
    "mirrored_neighbours",
    "navigator_phase",
    "navigators_are_turned",
    "place_lines",
    "plan_readouts",
    "read_trapezoid",
    "regridding_matrix",
    "shifting_matrix",
    "shot_parity",
    "shot_phase",
    "with_navigator_directions",
]
