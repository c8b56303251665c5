"""Scans from elsewhere, and perturbations by gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.trust.common import SYSTEMS, Setting, deliver, psnr
from kspace.container import KSpace
from kspace.fourier import resize
from kspace.masks import MaskSpec
from kspace.normal_equations import solve
from kspace.operators import Sense
from kspace.simulation.from_images import complex_noise
from recon.commands.calibrate import labelled
from recon.compare.cases import case_of, find_data
from recon.evidence.calibrate import Labelled
from recon.evidence.replicates import worst_case_scale
from recon.methods.classical import CgSense
from recon.methods.refine import Residual

STEPS = 10
UNKNOWN_MASKS = ("spiral:20%", "dagan-g2d:20%")


def outside(setting: Setting) -> None:
    """What the guard says and what is delivered; PSNR against the truth, or against all samples of a scan."""
    method = setting.method()
    silent = total = 0
    for name, case in _cases(setting):
        evidence, planes, log = deliver(method, case)
        delivered, companion = (psnr(case.truth, planes[role]) for role in ("main", "sense"))
        gap = delivered - companion
        covered = ""
        if "std" in planes:
            inside = case.op.support & (planes["std"] > 0)
            share = ((planes["main"].abs() - case.truth).abs() <= planes["std"])[inside].double().mean()
            covered = f", coverage {float(share):.0%}"
        total, silent = total + 1, silent + (gap < -1 and not log.warnings)
        guard = "; ".join(evidence.guard.outside) if evidence.guard is not None else ""
        verdicts = {n: i.verdict for n in ("certificate", "held_out", "stability") if (i := getattr(evidence, n)) is not None}
        print(
            f"{name}: delivered {evidence.delivered} {delivered:.2f} dB, companion {companion:.2f} dB ({gap:+.2f}){covered}; "
            f"guard: {guard or 'inside'}; {verdicts}; {len(log.warnings)} warnings"
            f"{f'; fallback: {evidence.fallback.reason[:90]}' if evidence.fallback else ''}",
            flush=True,
        )
    print(f"delivered more than 1 dB below the companion without a warning: {silent} of {total}")


def _cases(setting: Setting) -> Iterator[tuple[str, Labelled]]:
    """Name and case; real scans have the combination of all of their samples for a truth."""
    folder = setting.data / "fastmri_style"
    for file, n in (("ge_fruit_8ch.h5", 2), ("brain_8ch.h5", 1), ("ulf_*.h5", 1), ("phantom_skyra_32ch_64.h5", 1)):
        for volume in find_data([str(folder / file)])[0]:
            for number in volume.slices(n):
                for spec in setting.specs():
                    yield f"{volume.name} slice {number} {spec}", _real(volume.plane(number), spec, volume.name)
    volumes = setting.test_volumes()[:2]
    for volume in volumes:
        for text in UNKNOWN_MASKS:
            yield f"{volume.name} {text}", labelled(volume, MaskSpec.parse(text))
        for spec in setting.specs():
            one = labelled(volume, spec)
            yield f"{volume.name} {spec}", one
            half = replace(one.op, maps=_normalised(one.op.maps[::2]))
            yield f"{volume.name} {spec} half of the coils dead", replace(one, y=one.y[::2], op=half)
            yield f"{volume.name} {spec} doubled noise", _noisier(one)
            yield f"{volume.name} {spec} noise scan of another scan (a tenth)", replace(one, noise_std=0.1)
            swapped = replace(one.op, maps=one.op.maps.roll(1, 0))
            yield f"{volume.name} {spec} swapped coil maps", replace(one, op=swapped)


def _normalised(maps: Tensor) -> Tensor:
    root = maps.abs().square().sum(0).sqrt()
    return maps / torch.where(root > 0, root, 1)


def _noisier(one: Labelled) -> Labelled:
    """Noise of twice the level, which the noise scan does not know of."""
    rng = torch.Generator().manual_seed(0)
    noise = 3**0.5 * (one.noise_std or 1.0) * complex_noise(tuple(one.y.shape), rng)
    return replace(one, y=torch.where(one.op.mask, one.y + noise, 0))


def _real(k: KSpace, spec: MaskSpec, name: str) -> Labelled:
    case = case_of(k, spec.draw((k.data.shape[-2], k.data.shape[-1]), name))
    truth = resize(torch.from_numpy(case.truth), tuple(case.y.shape[-2:]))
    return Labelled(case.y, case.op, truth, k.header.noise_std)


def perturb(setting: Setting) -> None:
    """Largest change of the image by a perturbation with the norm of the noise, found by gradient ascent on each network."""
    for volume in setting.test_volumes()[:2]:
        for spec in setting.specs()[:1]:
            case = labelled(volume, spec)
            norm = worst_case_scale(case.y, case.op, case.noise_std or 1.0)
            worst = ascend(CgSense(tolerance=1e-4), case, norm, linear=True)
            gains = [f"sense {gain(CgSense(), case, worst):.2f}"]
            for name in SYSTEMS:
                network = setting.method(name, "none").generator
                assert network is not None
                generator = network.generator
                for how in ("network", "network without data consistency"):
                    kept = getattr(generator, "consistency", None)
                    if how != "network":
                        if kept is None or not hasattr(generator, "consistency"):
                            continue
                        generator.consistency = torch.nn.ModuleList() if isinstance(kept, torch.nn.ModuleList) else None
                    try:
                        f = partial(_image, generator)
                        d = ascend(f, case, norm)
                        found = gain(f, case, d)
                        said = f"{name} {how} {found:.2f} (sense {gain(CgSense(), case, d):.2f})"
                        if how == "network":
                            refined = Residual()

                            def residual(y: Tensor, op: Sense, f: Callable[..., Tensor] = f, r: Residual = refined) -> Tensor:
                                with torch.no_grad():
                                    return r(f(y, op), y, op)

                            said += f", refined {gain(residual, case, d):.2f}"
                    finally:
                        if how != "network":
                            generator.consistency = kept
                    gains.append(said)
            print(f"{volume.name} {spec}: gains under the worst perturbation: {'; '.join(gains)}", flush=True)


def _image(generator: torch.nn.Module, y: Tensor, op: Sense) -> Tensor:
    image: Tensor = generator.intermediates(y, op)["image"]  # type: ignore[operator]
    return image


def gain(f: Callable[[Tensor, Sense], Tensor], case: Labelled, d: Tensor) -> float:
    """``||f(y + d) - f(y)|| / ||d||`` for k-space ``(coil ky kx)``."""
    with torch.no_grad():
        change = f((case.y + d)[None], _batched(case.op)) - f(case.y[None], _batched(case.op))
    return float(change.norm() / d.norm())


def ascend(f: Callable[[Tensor, Sense], Tensor], case: Labelled, norm: float, linear: bool = False) -> Tensor:
    """Perturbation of the acquired samples ``(coil ky kx)`` with `norm`, by normalised gradient ascent on the change of f."""
    rng = torch.Generator().manual_seed(0)
    d = torch.where(case.op.mask, complex_noise(tuple(case.y.shape), rng), 0)
    d = d * (norm / d.norm())
    op = _batched(case.op)
    with torch.no_grad():
        start = f(case.y[None], op)
    for _ in range(STEPS):
        if linear:  # the gradient of ||M A^H d||^2 is A M M A^H d, with M the inverse of the normal equations
            step = op.forward(solve(op, torch.tensor(CgSense.lamda), f(d[None], op), tolerance=1e-4, max_iterations=200))[0]
        else:
            variable = d.clone().requires_grad_(True)
            change = f((case.y + variable)[None], op) - start
            (step,) = torch.autograd.grad(change.abs().square().sum(), variable)
        step = torch.where(case.op.mask, step.detach(), 0)
        if float(step.norm()) == 0:
            break
        d = step * (norm / step.norm())
    return d


def _batched(op: Sense) -> Sense:
    mask = op.mask if op.mask.ndim > 2 else op.mask.unsqueeze(0)
    return replace(op, maps=op.maps[None], mask=mask[None])
