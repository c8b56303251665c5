"""Deep de-aliasing: Yu et al. 2017, arXiv 1705.07137, the predecessor of DAGAN (`models.dagan`), of whose parts it is made.

The U-Net with refinement learning and the discriminator are those of DAGAN; the loss has no frequency term. Published: half the
mean squared error of the image, half that of VGG features, and ``log(1 - D)``, for which the non-saturating form is used as in
DAGAN's code. Raw: DAGAN's raw preset with ``frequency: 0``, so that both fit the same weights.
"""

from __future__ import annotations

from dataclasses import replace

from models.dagan import NARROW, DaganLosses, PublishedDaganLosses
from models.dagan import PRESETS as DAGAN
from models.parts.contract import Preset

LABEL = "De-aliasing"


def _without_frequency(preset: Preset, losses: DaganLosses | PublishedDaganLosses) -> Preset:
    return replace(preset, label=LABEL, options=replace(preset.options, losses=replace(losses, frequency=0.0)))


PRESETS = {
    "raw": _without_frequency(DAGAN["raw"], DaganLosses()),
    "published": replace(_without_frequency(DAGAN["published"], PublishedDaganLosses("paper")), narrow=NARROW),
}
