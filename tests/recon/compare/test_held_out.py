"""Held-out samples: the error is the true one, nothing that was held out is used, and worse images score worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kspace.container import Header, KSpace
from kspace.errors import InputError
from kspace.fourier import fft
from kspace.io import fastmri
from kspace.masks import MaskSpec, digest
from kspace.operators import Sense
from recon.commands.convert import convert
from recon.compare.held_out import HeldOutComparison, compare_scan
from recon.compare.holding import NoiseLevel, hold_out
from recon.methods import classical
from recon.methods.held_out import Candidates
from tests.support import raw_files
from tests.support.scans import coil_maps, ellipses

SHAPE = (48, 40)
SENSE = classical.CgSense(lamda=1e-3, iterations=30)
METHODS = {"zero-filled": classical.ZeroFilled(), "sense": SENSE}


def scan(
    spec: str = "random1d:2,centre=10", noise: float = 1.0, scale: float = 100.0, averages: bool = False, texture: float = 0.1
) -> tuple[KSpace, Tensor, Tensor]:
    """k-space of known noise, the true image and the true maps. The texture gives the outer k-space something to predict."""
    truth, maps = scale * ellipses(SHAPE) * (1 + texture * torch.randn(SHAPE)), coil_maps(4, SHAPE)
    mask = MaskSpec.parse(spec).draw(SHAPE)[None]
    counts = mask * (1 + 3 * (torch.arange(SHAPE[0]) % 2))[None, :, None] if averages else None
    n = torch.randn(4, *SHAPE, dtype=torch.complex64) * noise  # E|n|^2 = noise^2
    y = fft(maps * truth) + (n if counts is None else n / counts.clamp(min=1).sqrt())
    header = Header(noise_std=noise or None, steps=("whiten",))
    return KSpace(torch.where(mask, y, 0), mask, header, counts), truth, maps


def compare(k: KSpace, maps: Tensor, images: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    """The summary for images that do not depend on the data."""
    comparison = HeldOutComparison(tuple(images), **options)
    for draw, held in comparison.begin(k):
        op = Sense(maps, hold_out(k, held).mask)
        for name, image in images.items():
            comparison.add(draw, name, k, held, op, image, None)
    return comparison.summary()


def row(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(r for r in result["methods"] if r["name"] == name)


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("spec", ["random1d:2,centre=10", "poisson2d:3,centre=10"])
def test_the_truth_has_no_error_and_a_wrong_image_has_its_own(spec: str, averages: bool) -> None:
    k, truth, maps = scan(spec, averages=averages)
    images = {"true": truth, "dim": 0.7 * truth, "black": 0 * truth, "off": truth.roll(1, -1)}
    result = compare(k, maps, images, draws=8)
    clean, rows = fft(maps * truth), SHAPE[1] if spec.startswith("random1d") else 1
    for i, held in enumerate(Candidates.of(k).draw(8, 0.1, 0)):
        # By hand, from samples without noise.
        energy = torch.where(held, clean, 0).abs().square().sum()
        for name, image in images.items():
            expected = float(torch.where(held, fft(maps * image) - clean, 0).abs().square().sum() / energy)
            # The noise energy scatters, and so do its products with the error and with the signal: by the last term at most.
            resolution, floor, n = result["draws"][i]["resolution"], result["draws"][i]["floor"], 4 * int(held.sum()) * rows
            within = 4 * (resolution * (1 + expected) + (2 * floor / n) ** 0.5 * (expected**0.5 + expected))
            assert row(result, name)["values"][i] == pytest.approx(expected, abs=within), (name, i)
    assert row(result, "black")["values"] == pytest.approx([1.0] * 8)
    assert row(result, "dim")["mean"] == pytest.approx(0.09, abs=0.01)
    assert abs(row(result, "true")["mean"]) < 4 * result["resolution"]
    one_draw = 8**0.5 * result["resolution"]  # the spread of a draw; chance decides by how much it is met in 8
    assert 0.4 * one_draw < row(result, "true")["spread"] < 2 * one_draw
    weights = [d["weight"] for d in result["draws"]]
    assert sum(weights) == pytest.approx(1)
    for name in images:
        r = row(result, name)
        assert r["mean"] == pytest.approx(sum(w * v for w, v in zip(weights, r["values"], strict=True)), abs=1e-9)
    assert result["ranking"][0] == "true"
    assert row(result, "black")["rank"] > row(result, "dim")["rank"]


def test_the_floor_is_what_the_noise_adds() -> None:
    k, truth, maps = scan(noise=2.0)
    quiet = KSpace(k.data, k.mask, Header(noise_std=1e-6, steps=("whiten",)))
    known, ignored = (compare(x, maps, {"true": truth}) for x in (k, quiet))
    # Not subtracted, the noise is an error of the truth as large as the floor says (per signal energy with noise).
    assert row(ignored, "true")["mean"] == pytest.approx(known["floor"] / (1 + known["floor"]), rel=0.1)
    assert row(known, "true")["mean"] == pytest.approx(0, abs=3 * known["resolution"])


@pytest.mark.parametrize("spec", ["random1d:2,centre=10", "poisson2d:3,centre=10"])
def test_draws(spec: str) -> None:
    k, _, _ = scan(spec)
    candidates = Candidates.of(k)
    masks = candidates.draw(5, 0.1, 0)
    acquired = k.mask[0] if candidates.unit == "points" else k.mask[0, :, :1]
    assert candidates.unit == ("lines" if spec.startswith("random1d") else "points")
    assert torch.stack(masks).sum(0).max() == 1  # nothing is taken out twice
    n = {int(m.sum()) for m in masks}
    assert n == {max(1, round(0.1 * int(candidates.where.sum())))}
    ny, nx = candidates.calibration
    assert ny >= 10
    for mask in masks:
        assert (mask & ~acquired).sum() == 0
        assert not mask[SHAPE[0] // 2 - 5 : SHAPE[0] // 2 + 5, mask.shape[1] // 2 - min(5, nx // 2) :][:, :1].any()
    again, other = candidates.draw(5, 0.1, 0), candidates.draw(5, 0.1, 1)
    assert all(torch.equal(a, b) for a, b in zip(masks, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(masks, other, strict=True))


def volume(path: Path, k: KSpace, maps: Tensor, covariance: bool = True) -> Path:
    """A fastMRI-style file of two slices, the second the first with another phase."""
    header = Header(
        source="test",
        encoded_matrix=(SHAPE[1], SHAPE[0], 1),
        recon_matrix=(SHAPE[1], SHAPE[0], 1),
        encoded_fov_m=(0.2, 0.2, 0.005),
        recon_fov_m=(0.2, 0.2, 0.005),
    )
    slices = [KSpace(y, k.mask, header) for y in (k.data, 1j * k.data)]
    noise = torch.eye(k.n_coils, dtype=torch.complex64) if covariance else None
    fastmri.write_volume(path, slices, noise_covariance=noise)
    return path


@pytest.mark.parametrize(("spec", "maps"), [("random1d:2,centre=12", "espirit"), ("poisson2d:3,centre=12", "jsense")])
@pytest.mark.parametrize("covariance", [True, False])
def test_nothing_that_was_held_out_is_used(tmp_path: Path, spec: str, maps: str, covariance: bool) -> None:
    k, _, true_maps = scan(spec)
    held = Candidates.of(k).draw(3, 0.1, 0)[1]
    other = KSpace(torch.where(held & k.mask, 1e3 * (1 + 1j) - k.data, k.data), k.mask, k.header)
    seen: dict[str, list[tuple[Tensor, ...]]] = {}
    for name, data in (("as it is", k), ("perturbed", other)):
        path = volume(tmp_path / f"{name}.h5", data, true_maps, covariance)

        def spy(y: Tensor, op: Sense, name: str = name) -> Tensor:
            seen.setdefault(name, []).append((y.clone(), op.maps.clone(), op.mask.clone(), SENSE(y, op)))
            return seen[name][-1][-1]

        compare_scan(path, {"spy": spy}, draws=3, max_slices=1, maps=maps)
    for a, b in zip(seen["as it is"][1], seen["perturbed"][1], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(seen["as it is"][0][0], seen["perturbed"][0][0])  # the other draws do use them


def test_a_file_ranks_methods_as_the_truth_does(tmp_path: Path) -> None:
    k, truth, maps = scan("random1d:2,centre=12", scale=1000)
    path = volume(tmp_path / "scan.h5", k, maps)
    steps: list[tuple[int, int, str]] = []
    result = compare_scan(path, METHODS, draws=4, progress=lambda *step: steps.append(step))
    error = {name: float((m(k.data, Sense(maps, k.mask)).abs() - truth.abs()).norm()) for name, m in METHODS.items()}
    assert result["ranking"] == sorted(error, key=lambda name: error[name])
    assert row(result, "zero-filled")["behind"] > 0.05
    assert not row(result, "zero-filled")["tied"]
    assert [s[0] for s in steps] == list(range(1, 17))  # 2 slices, 4 draws, 2 methods
    assert {s[1] for s in steps} == {16}
    assert result["noise"]["source"] == "whitening"
    assert (result["unit"], result["slices"], result["scan"]) == ("lines", ["slice 0", "slice 1"], "scan.h5")
    rest = k.mask[0] & ~Candidates.of(k).draw(4, 0.1, 0)[0]
    assert result["draws"][0]["digest"] == digest(rest, SHAPE)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert "sense predicts the held-out lines best" in result["says"]


def test_a_scan_with_all_samples_is_undersampled_first(tmp_path: Path) -> None:
    case = raw_files.noisy(tmp_path / "full.h5", noise=0.01, n_coils=8)
    with pytest.raises(InputError, match="0 acquired lines outside"):
        compare_scan(case.path, METHODS)
    result = compare_scan(case.path, METHODS, mask=MaskSpec.parse("random1d:2,centre=10"), draws=2)
    assert result["mask"] == "random1d:2,centre=10"
    assert result["acceleration"] == pytest.approx([2.0, 30 / 14])
    assert result["noise"]["source"] == "whitening"
    assert result["ranking"] == ["sense", "zero-filled"]


def test_three_dimensions(tmp_path: Path) -> None:
    case = raw_files.accelerated_volume(tmp_path / "volume.h5")
    result = compare_scan(case.path, METHODS, draws=2)
    assert (result["unit"], result["n_calibration"]) == ("points", [8, 8])
    assert result["ranking"] == ["sense", "zero-filled"]
    assert row(result, "sense")["mean"] < 0.5 * row(result, "zero-filled")["mean"]


def test_a_method_that_fails_has_its_reason_and_no_values(tmp_path: Path) -> None:
    k, _, maps = scan("random1d:2,centre=12", scale=1000)
    path, calls = volume(tmp_path / "scan.h5", k, maps), []

    def late(y: Tensor, op: Sense) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return SENSE(y, op)

    methods = {
        "late": late,
        "nan": lambda y, op: torch.full_like(y[0], float("nan")),
        "small": lambda y, op: y[0, :3],
        "magnitude": lambda y, op: SENSE(y, op).abs().to(y.dtype),
        **METHODS,
    }
    result = compare_scan(path, methods, draws=3)
    assert row(result, "late")["reason"] == "RuntimeError: out of memory"
    assert row(result, "nan")["reason"] == "values that are not finite"
    assert "shape (3, 40)" in row(result, "small")["reason"]
    assert [row(result, "late")[key] for key in ("values", "mean", "rank")] == [None] * 3
    assert set(result["ranking"]) == {"sense", "magnitude", "zero-filled"}
    # Without a phase of its own a magnitude would predict nothing.
    assert "no phase" in row(result, "magnitude")["note"]
    assert row(result, "magnitude")["mean"] < 0.5
    assert "failed: late, nan, small" in result["says"]


def test_noise_that_nobody_measured() -> None:
    spec = "random1d:2,centre=10"
    k, _, _ = scan(spec, noise=3.0, texture=0.0)
    unknown = KSpace(k.data, k.mask, Header())
    level = NoiseLevel.of(unknown)
    assert level.source == "outer k-space"
    assert level.variance is not None
    assert level.variance.mean() == pytest.approx(9.0, rel=0.2)
    # Every eighth row a bright one: their spectrum is a comb, which nobody would take for noise.
    _, truth, maps = scan(spec)
    truth[::8, ::5] *= 50
    signal = KSpace(fft(maps * truth) * k.mask, k.mask, Header())
    assert NoiseLevel.of(signal).source == "unknown"
    result = compare(signal, maps, {"true": truth, "black": 0 * truth})
    assert (result["floor"], result["resolution"]) == (None, None)
    assert row(result, "true")["mean"] == pytest.approx(0, abs=1e-10)
    assert row(result, "black")["mean"] == pytest.approx(1)
    assert "the noise is not known" in result["says"]
    assert NoiseLevel.of(KSpace(torch.zeros_like(k.data), k.mask, Header())).source == "unknown"


def test_nothing_but_noise_is_said() -> None:
    k, truth, maps = scan(scale=1e-3)
    quieter = KSpace(0.5 * k.data, k.mask, k.header)
    result = compare(quieter, maps, {"true": truth})
    assert row(result, "true")["reason"] == "the held-out samples hold nothing but noise"
    assert result["ranking"] == []
    assert "nothing but noise" in result["says"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    k, _, maps = scan("random1d:2,centre=12", scale=1000)
    path = volume(tmp_path / "scan.h5", k, maps)
    with pytest.raises(InputError, match="no methods"):
        compare_scan(path, {})
    with pytest.raises(InputError, match="0 draws"):
        compare_scan(path, METHODS, draws=0)
    with pytest.raises(InputError, match="too few for 40 draws"):
        compare_scan(path, METHODS, draws=40)
    uncalibrated = raw_files.uncalibrated(tmp_path / "none.h5")
    with pytest.raises(InputError, match="calibration lines"):
        compare_scan(uncalibrated.path, METHODS)


def test_a_prospectively_undersampled_scan(data_dir: Path) -> None:
    """GRAPPA R = 3 with embedded reference lines; the noise is known from the scan."""
    result = compare_scan(data_dir / "raw" / "skyra_bssfp_14ch_grappa3.h5", METHODS, draws=1)
    assert (result["unit"], result["n_calibration"], result["n_candidates"]) == ("lines", [49, 1], 19)
    assert result["ranking"] == ["sense", "zero-filled"]
    assert 0 < row(result, "sense")["mean"] < 0.4
    assert 0.01 < result["floor"] < 0.1


def test_a_scan_of_points(data_dir: Path, tmp_path: Path) -> None:
    """Poisson disc, converted from an array; nobody measured its noise."""
    path = tmp_path / "brain.h5"
    convert(data_dir / "raw" / "brain_8ch_poisson_prospective.npy", path, axes="coil,ky,kx")
    result = compare_scan(path, METHODS, draws=1)
    assert (result["unit"], result["n_calibration"]) == ("points", [24, 24])
    assert result["noise"]["source"] == "outer k-space"
    assert result["ranking"] == ["sense", "zero-filled"]
