"""fastMRI's own mask functions, with fastMRI's own seeds: for figures that are compared with the challenge's.

Their accelerations are fastMRI's, not exact: the random mask keeps the expected number of lines, the equispaced and magic ones
add the calibration to a comb of every R-th line.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kspace.masks.request import LINE_CENTRE, Mask, Request


def fastmri_mask(kind: str) -> Callable[[Request], Mask]:
    """The family that fastMRI calls `kind`: ``random``, ``equispaced``, ``equispaced_fraction`` or ``magic``.

    The calibration is fastMRI's ``center_fraction``, 0.08 at R = 4 and 0.04 at R = 8, or ``centre`` lines. The seed is
    ``tuple(map(ord, key))``, as fastMRI makes it of the file name (so the key is to be the name with its ending); a `seed`
    other than 0, or an empty key, puts the seed's number in front.
    """

    def draw(ask: Request) -> Mask:
        # Imported here: fastmri.data brings much with it.
        from fastmri.data.subsample import create_mask_for_mask_type

        r, fraction = _checked(ask, whole=kind in ("equispaced", "magic"), fraction=kind == "equispaced_fraction")
        if round(ask.ny * fraction) == ask.ny:
            return np.ones(ask.ny, bool)  # fastMRI divides by the number of other lines
        seed = tuple(map(ord, ask.key))
        seed = seed if seed and ask.seed == 0 else (ask.seed, *seed)
        # With a seed, fastMRI draws from a generator of its own and restores it: no global state is involved.
        mask, _ = create_mask_for_mask_type(kind, [fraction], [r])((1, ask.ny, 1), seed=seed)
        return mask.numpy().reshape(-1) > 0

    return draw


def _checked(ask: Request, whole: bool, fraction: bool) -> tuple[float, float]:
    """R, an int where fastMRI needs one, and the centre fraction."""
    r = ask.required_acceleration
    if whole and r != round(r):
        raise ask.refuse(f"fastMRI's mask needs a whole acceleration, not {r:g}", f"the nearest possible is {round(r)}")
    centre_fraction = LINE_CENTRE / r if ask.centre is None else ask.centre / ask.ny
    n_centre = round(ask.ny * centre_fraction)
    most = max(1, int(ask.ny / r) - (fraction and r > 1))  # the fraction mask divides by what is left of the rate
    if n_centre > most:
        raise ask.refuse(
            f"{n_centre} calibration lines are more than acceleration {r:g} allows", f"the nearest possible is centre={most}"
        )
    if n_centre < 1:
        raise ask.refuse(f"a centre fraction of {centre_fraction:g} is no line at all", "the nearest possible is centre=1")
    if fraction and n_centre * r == ask.ny:
        raise ask.refuse(f"{n_centre} calibration lines leave no others at acceleration {r:g}", "use random1d")
    return (int(r) if whole or r == round(r) else r), centre_fraction
