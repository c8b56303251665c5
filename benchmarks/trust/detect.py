"""Planted hallucinations, false alarms, and coverage of the interval."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import torch

from benchmarks.trust.common import Setting, auc, blob, deliver, mean_and_interval, place_in, psnr
from recon.commands.calibrate import labelled
from recon.evidence.assess import Assessor, EvidenceOptions
from recon.evidence.certificate import misfit
from recon.evidence.determined import determined_part
from recon.methods.classical import CgSense

CONTRASTS, DIAMETERS, KINDS = (0.25, 0.5, 1.0), (4, 8), ("disc", "lesion")
DETECTORS = ("ratio", "local", "share", "together")


def detect(setting: Setting) -> None:
    """Objects added to delivered images, in the determined part and in the rest."""
    method = setting.method()
    assert method.generator is not None
    untouched: dict[str, list[float]] = defaultdict(list)
    planted: dict[tuple[str, float, str], list[float]] = defaultdict(list)
    amber = red = n = 0
    for volume, spec, case in setting.cases():
        companion = CgSense()
        beside = companion(case.y, case.op)
        assessor = Assessor(method.generator, companion, EvidenceOptions("basic"))
        scan = assessor.scan(case.y, case.op, beside, case.noise_std, {})
        assert scan.noise is not None
        std, limits = scan.noise[0], assessor.limits(scan)
        evidence, planes, _ = deliver(method, case, evidence="basic", guard="off")
        image = planes["main"]
        reference = misfit(beside, scan.y, case.op, std)
        part, lamda = determined_part(image, case.op, std)

        def scores(x: torch.Tensor, determined: torch.Tensor) -> dict[str, float]:
            judged = misfit(x, scan.y, case.op, std)  # noqa: B023 - used at once
            share = float((x - determined).abs().square().sum() / x.abs().square().sum())
            found = {
                "ratio": judged.ratio(reference) / limits.ratio_amber,  # noqa: B023
                "local": judged.local_ratio(reference) / limits.local_amber,  # noqa: B023
                "share": share / (limits.share or 1.0),  # noqa: B023
            }
            return {**found, "together": max(found.values())}

        for name, value in scores(image, part).items():
            untouched[name].append(value)
        n, amber = n + 1, amber + (scores(image, part)["together"] > 1)
        red += evidence.fallback is not None
        rng = torch.Generator().manual_seed(n)
        level = float(case.truth[case.truth > 0.2 * case.truth.flatten().quantile(0.99)].mean())
        for kind in KINDS:
            for diameter in DIAMETERS:
                shape = blob(image.shape, place_in(case.truth, rng, diameter), diameter, kind)
                d = level * shape * torch.exp(1j * image.angle())
                seen = determined_part(d, case.op, std, lamda)[0]
                rest = d - seen
                rest = rest * (d.norm() / rest.norm().clamp(min=1e-12))  # as strong as the object itself
                rest_seen = determined_part(rest, case.op, std, lamda)[0]
                seen_seen = determined_part(seen, case.op, std, lamda)[0]
                for contrast in CONTRASTS:
                    for where, more, its in (("determined", seen, seen_seen), ("rest", rest, rest_seen)):
                        for name, value in scores(image + contrast * more, part + contrast * its).items():
                            planted[where, contrast, name].append(value)
        print(f"  {volume.name} {spec}: untouched {scores(image, part)}", flush=True)
    print(f"untouched: {n} images, {amber} beyond the limits of a warning, {red} replaced by the classical image")
    for where in ("determined", "rest"):
        for contrast in CONTRASTS:
            cells = [f"{name} {auc(untouched[name], planted[where, contrast, name]):.3f}" for name in DETECTORS]
            found = planted[where, contrast, "together"]
            warned = sum(v > 1 for v in found) / len(found)
            print(f"{where}, contrast {contrast:g} (n {len(found)}): AUC {', '.join(cells)}; warned of {warned:.0%}")
        every = {name: [v for c in CONTRASTS for v in planted[where, c, name]] for name in DETECTORS}
        print(f"{where}, all: AUC {', '.join(f'{name} {auc(untouched[name], every[name]):.3f}' for name in DETECTORS)}")


def coverage(setting: Setting) -> None:
    """Share of the pixels of the support in the interval, its width, and what was delivered, on test volumes."""
    below, worst, total = 0, 0.0, 0
    for refine in ("stack", "none"):
        method = setting.method(refine=refine)
        for spec in setting.specs():
            covered, widths, ratios = [], [], []
            for volume in setting.test_volumes():
                case = labelled(volume, spec)
                evidence, planes, log = deliver(replace(method), case)
                gap = psnr(case.truth, planes["main"]) - psnr(case.truth, planes["sense"])
                total, worst = total + 1, min(worst, gap)
                below += gap < -1 and not log.warnings
                if evidence.uncertainty is None or "std" not in planes:
                    print(f"  {volume.name} {spec}: no interval ({evidence.fallback})")
                    continue
                inside = case.op.support & (planes["std"] > 0)
                error = (planes["main"].abs() - case.truth).abs()
                covered.append(float((error <= planes["std"])[inside].double().mean()))
                widths.append(evidence.uncertainty.mean_width or 0.0)
                ratios.append(float(error[inside].mean() / case.truth[inside].mean()))
            mean, low, high = mean_and_interval(covered)
            print(
                f"{refine} {spec}: coverage {mean:.1%} (95 % interval {low:.1%} to {high:.1%}, volumes "
                f"{min(covered):.1%} to {max(covered):.1%}, n {len(covered)}); half width {sum(widths) / len(widths):.1%} and "
                f"error {sum(ratios) / len(ratios):.1%} of the mean magnitude",
                flush=True,
            )
    print(f"delivered more than 1 dB below the companion without a warning: {below} of {total}; least gap {worst:+.2f} dB")
