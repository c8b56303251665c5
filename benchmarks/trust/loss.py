"""Planted loss: what is left of tumours and of synthetic lesions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.trust.common import SYSTEMS, Setting, blob, deliver, place_in
from kspace import coils
from kspace.coils import NoCalibration
from kspace.fourier import fft
from kspace.masks import MaskSpec
from kspace.operators import Sense
from recon.commands.calibrate import labelled
from recon.compare.cases import FullVolume
from recon.evidence.calibrate import Labelled
from recon.methods.classical import CgSense, L1Wavelet

RS = (4, 8, 12)
KEPT = 0.5  # of the contrast: less counts as lost
VISIBLE = 0.1  # of the level around it: a tumour of less contrast in the truth is not judged
DIAMETERS, CONTRAST = (2, 4, 8), 0.5


def contrast(image: Tensor, box: tuple[int, int, int, int]) -> float:
    """Mean in a box ``y0 x0 y1 x1`` minus that of a frame of half its size around it, of a magnitude ``(y x)``."""
    y0, x0, y1, x1 = box
    my, mx = max((y1 - y0) // 4, 2), max((x1 - x0) // 4, 2)
    outer = torch.zeros(image.shape, dtype=torch.bool)
    outer[max(y0 - my, 0) : y1 + my, max(x0 - mx, 0) : x1 + mx] = True
    outer[y0:y1, x0:x1] = False
    return float(image[y0:y1, x0:x1].mean() - image[outer].mean())


def methods(setting: Setting) -> dict[str, Callable[[Tensor, Sense], Tensor]]:
    """Classical methods and networks alone."""
    found: dict[str, Callable[[Tensor, Sense], Tensor]] = {"sense": CgSense(), "l1-wavelet": L1Wavelet(lamda=4e-3)}
    for name in SYSTEMS:
        made = setting.method(name, "none").reconstruct
        assert made is not None
        found[name] = made
    return found


def boxed(volume: FullVolume) -> tuple[int, tuple[int, int, int, int]] | None:
    """The slice with a box that is nearest to the middle, and its box."""
    boxes = np.round(volume.boxes).astype(int)
    if not len(boxes):
        return None
    row = min(boxes.tolist(), key=lambda b: abs(b[0] - volume.n_slices // 2))
    return row[0], (row[2], row[3], row[4], row[5])


def loss(setting: Setting) -> None:
    """Tumours in boxes, then synthetic lesions in raw data."""
    tumours(setting)
    lesions(setting)


def tumours(setting: Setting) -> None:
    """Contrast kept in the boxes of the test volumes, and what marks a loss."""
    for r in RS:
        spec = MaskSpec.parse(f"random1d:{r}")
        kept: dict[str, list[float]] = defaultdict(list)
        marks: list[str] = []
        for volume in setting.test_volumes():
            if (found := boxed(volume)) is None:
                continue
            number, box = found
            try:
                case = labelled(volume, spec, number=number)
            except NoCalibration as error:
                print(f"  {volume.name} {spec}: left out, {error.what}")
                continue
            true = contrast(case.truth, box)
            if abs(true) < VISIBLE * float(case.truth[box[0] : box[2], box[1] : box[3]].mean()):
                continue
            for name, reconstruct in methods(setting).items():
                kept[name].append(contrast(reconstruct(case.y, case.op).abs(), box) / true)
            evidence, planes, log = deliver(setting.method(), case)
            kept["delivered"].append(contrast(planes["main"].abs(), box) / true)
            if kept["delivered"][-1] < KEPT:
                wide = ""
                if "std" in planes:
                    inside = planes["std"][box[0] : box[2], box[1] : box[3]].mean()
                    wide = f", interval {float(inside) / abs(true):.1f} times the contrast"
                assert evidence.certificate is not None
                says = f"certificate {evidence.certificate.verdict}{wide}, {len(log.warnings)} warnings"
                marks.append(f"{volume.name}: kept {kept['delivered'][-1]:.2f}; {says}")
        for name, values in kept.items():
            lost = sum(v < KEPT for v in values)
            print(f"R {r} {name}: contrast kept {np.mean(values):.2f} (least {min(values):.2f}), lost {lost} of {len(values)}")
        print("\n".join(f"  lost: {m}" for m in marks), flush=True)


def lesions(setting: Setting) -> None:
    """Discs added to the raw data; how much of them each method's image gains."""
    for r in RS[:2]:
        spec = MaskSpec.parse(f"random1d:{r}")
        kept: dict[tuple[str, int], list[float]] = defaultdict(list)
        for i, volume in enumerate(setting.test_volumes()[:4]):
            number = volume.n_slices // 2
            full = volume.plane(number)
            maps = coils.estimate_maps(full, "espirit")
            case = labelled(volume, spec)
            rng = torch.Generator().manual_seed(i)
            level = float(case.truth[case.truth > 0.2 * case.truth.flatten().quantile(0.99)].mean())
            phase = torch.exp(1j * CgSense()(case.y, case.op).angle())
            plain = {name: f(case.y, case.op).abs() for name, f in methods(setting).items()}
            for diameter in DIAMETERS:
                d = CONTRAST * level * blob(case.truth.shape, place_in(case.truth, rng, diameter), diameter, "disc")
                y = torch.where(case.op.mask, case.y + fft(maps * (d * phase)), 0)
                changed: Labelled = replace(case, y=y)
                for name, f in methods(setting).items():
                    gained = f(changed.y, changed.op).abs() - plain[name]
                    kept[name, diameter].append(float((gained * d).sum() / d.square().sum()))
        for name in methods(setting):
            cells = [f"{d} px {np.mean(kept[name, d]):.2f} (least {min(kept[name, d]):.2f})" for d in DIAMETERS]
            print(f"lesions R {r} {name}: kept {', '.join(cells)}, n {len(kept[name, DIAMETERS[0]])}", flush=True)
