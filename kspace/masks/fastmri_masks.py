"""fastMRI's own mask functions and seeds, for results comparable with the fastMRI challenge.

Their acceleration is fastMRI's, not exact: the random mask meets R on average, the equispaced and magic masks add the
calibration lines to every R-th line.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kspace.masks.request import LINE_CENTRE, Mask, Request


def fastmri_mask(kind: str) -> Callable[[Request], Mask]:
    """Drawing function of the fastMRI mask type `kind`: ``random``, ``equispaced``, ``equispaced_fraction`` or ``magic``.

    The calibration is fastMRI's ``center_fraction``, 0.08 at R = 4 and 0.04 at R = 8, or ``centre`` lines. The seed is
    ``tuple(map(ord, key))``, as fastMRI derives it from the file name (the key must include the extension); a `seed` other
    than 0, or an empty key, prepends the seed.
    """

    def draw(request: Request) -> Mask:
        # Imported here: fastmri.data is slow to import.
        from fastmri.data.subsample import create_mask_for_mask_type

        r, fraction = _checked(request, whole=kind in ("equispaced", "magic"), fraction=kind == "equispaced_fraction")
        if round(request.ny * fraction) == request.ny:
            return np.ones(request.ny, bool)  # fastMRI would divide by the number of remaining lines, zero
        seed = tuple(map(ord, request.key))
        seed = seed if seed and request.seed == 0 else (request.seed, *seed)
        # Given a seed, fastMRI draws from its own generator: no global state is involved.
        mask, _ = create_mask_for_mask_type(kind, [fraction], [r])((1, request.ny, 1), seed=seed)
        return mask.numpy().reshape(-1) > 0

    return draw


def _checked(request: Request, whole: bool, fraction: bool) -> tuple[float, float]:
    """Acceleration, as an int where fastMRI needs one, and centre fraction."""
    r = request.required_acceleration
    if whole and r != round(r):
        raise request.refuse(
            f"this fastMRI mask needs an integer acceleration, not {r:g}", f"the nearest possible is {round(r)}"
        )
    centre_fraction = LINE_CENTRE / r if request.centre is None else request.centre / request.ny
    n_centre = round(request.ny * centre_fraction)
    most = max(1, int(request.ny / r) - (fraction and r > 1))  # equispaced_fraction divides by the lines left over
    if n_centre > most:
        raise request.refuse(
            f"{n_centre} calibration lines exceed the total that acceleration {r:g} allows",
            f"the nearest possible is centre={most}",
        )
    if n_centre < 1:
        raise request.refuse(f"a centre fraction of {centre_fraction:g} rounds to 0 lines", "the nearest possible is centre=1")
    if fraction and n_centre * r == request.ny:
        raise request.refuse(f"{n_centre} calibration lines leave no other lines at acceleration {r:g}", "use random1d")
    return (int(r) if whole or r == round(r) else r), centre_fraction
