"""Runs with made-up evidence, for the tests of the page of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kspace.container import Image, ImageIndex
from recon.evidence.record import Certificate, Determined, Fallback, GuardReport, ImageEvidence, Uncertainty
from recon.output.export import RunRecord
from tests.support.exports import make_image, make_record

HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror=window.stolen=1>{{blocks}}"


def images_and_record(n_slices: int = 3, fallen: int | None = 2, text: str = "", **image: Any) -> tuple[list[Image], RunRecord]:
    """Main and SENSE images, the maps of the evidence, and the record; a fallback for slice `fallen`, `text` in every name."""
    images, evidence = [], []
    normal = image.get("axes", np.eye(3))[:, 2]
    noise = torch.Generator().manual_seed(0)
    for s in range(n_slices):
        index = ImageIndex(slice=s)
        study = {"patientName": f"Doe{text}", "patientID": f"7{text}", "protocolName": f"T1{text}"}
        main = make_image(
            fov_mm=(120.0, 100.0, 5.0), position_mm=6 * s * normal, index=index, study=study, gain=100 * (1 + 0.1 * s), **image
        )
        main = replace(main, data=main.data + torch.rand(main.data.shape, generator=noise))
        sense = replace(main, data=main.data + 2.0, role="sense")
        difference = replace(main, data=main.data - sense.data, role="difference")
        prior = replace(main, data=0.05 * main.data, role="prior")
        std = replace(main, data=torch.full_like(main.data, 1.5), role="std")
        images += [main, sense, difference, prior, std]
        evidence.append(evidence_of(index, s == fallen, text).record())
    record = make_record(
        method="refinegan",
        generated=True,
        source=f"folder/scan{text.replace('/', '|')}.h5",
        mask={"images": [{"image": f"slice {s}", "digest": "ab" * 32, "acceleration": 4.0} for s in range(n_slices)]},
        warnings=[f"a warning{text}"],
        provenance={"code": {"version": "0.1.0", "commit": None}, "inputs": [{"what": "raw file", "sha256": "cd" * 32}]},
        extra={"evidence": evidence},
    )
    return images, record


def evidence_of(index: ImageIndex, fell: bool, text: str = "") -> ImageEvidence:
    """Evidence with one amber item; where the image `fell`, a red one and the fallback."""
    said = f"chi2 {7.3 if fell else 1.04}{text}"
    verdict = "red" if fell else "green"
    numbers: dict[str, Any] = {
        "chi2": 1.0, "companion_chi2": 1.0, "delivered_chi2": 1.0, "per_coil": (1.0,), "by_radius": (1.0,), "ratio": 1.0,
        "threshold": 1.5, "local": 3.0, "companion_local": 3.0, "local_threshold": 2.0, "noise_std": 1.0, "noise": "noise scan",
    }  # fmt: skip
    return ImageEvidence(
        index.name,
        vars(index),
        "sense" if fell else "refinegan",
        "sense",
        Certificate(verdict, said, **numbers),
        Determined("green", "9 % of the energy is not determined", 0.09, 1e-3, 0.2),
        None,
        Uncertainty("green", "90 % of the pixels lie inside", True, 1.4, 0.9, 0.88, 4, 0.03, "random1d:4"),
        None,
        GuardReport("amber", f"24 coils{text}; trained with 2 to 16", ("24 coils",), 1.0, 3.0),
        Fallback("sense", f"the samples contradict the image{text}") if fell else None,
    )
