"""GRAPPA against k-space that obeys a kernel exactly, a naive implementation, SENSE and the phantom's truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import recon
from kspace.container import Geometry
from kspace.errors import InputError
from kspace.operators import Sense
from kspace.simulation.acquisition import ScanProtocol, accelerate, cartesian, coil_covariance
from kspace.simulation.measurement import true_image, write_scan
from kspace.simulation.phantom import Phantom, head_coils
from recon.methods.classical import unasked
from recon.methods.grappa import Comb, Grappa
from tests.support.off_grid import SHAPES

pytestmark = pytest.mark.filterwarnings("ignore::recon.images.ReconWarning")
NOISE = 1e-3


def obedient(shape: tuple[int, int], n_coils: int, both: bool = False, seed: int = 0) -> Tensor:
    """k-space ``(coil ky kx)`` of coils whose sensitivities have three Fourier coefficients along ky, or along both axes: a
    kernel gives every sample from its neighbours exactly. Zero within three points of the ends."""
    random = torch.Generator().manual_seed(seed)
    inner = torch.randn(shape[0] - 6, shape[1] - 6, dtype=torch.complex128, generator=random)
    image = torch.nn.functional.pad(inner, (3, 3, 3, 3))
    taps = torch.randn(n_coils, 3, 3 if both else 1, dtype=torch.complex128, generator=random)
    return sum(  # type: ignore[return-value]
        taps[:, i, j, None, None] * image.roll((i - 1, j - 1 if both else 0), (0, 1))
        for i in range(3)
        for j in range(taps.shape[2])
    )


def comb(n: int, spacing: int, start: int, block: tuple[int, int]) -> Tensor:
    lines = torch.zeros(n, dtype=torch.bool)
    lines[start::spacing] = True
    lines[slice(*block)] = True
    return lines


def model(y: Tensor, mask: Tensor, calibration: Tensor | None = None) -> Sense:
    maps = torch.ones_like(y) / y.shape[-3] ** 0.5
    return Sense(maps, mask, calibration=calibration)


def error(found: Tensor, wanted: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


@pytest.mark.parametrize(("spacing", "start", "n"), [(2, 0, 40), (2, 1, 41), (3, 2, 47), (3, 0, 50)])
def test_samples_that_obey_a_kernel_are_found_exactly(spacing: int, start: int, n: int) -> None:
    full = obedient((n, 32), 4)
    mask = comb(n, spacing, start, (10, 34)).reshape(1, n, 1)
    y = torch.where(mask, full, float("nan"))
    found = Grappa(lamda=1e-14).fill(y, model(full, mask))
    assert error(found, full) < 1e-6
    assert torch.equal(found[:, mask[0, :, 0]], full[:, mask[0, :, 0]])
    separate = torch.where(comb(n, n, 0, (10, 34))[:, None], 7j * full, 0)
    uniform = comb(n, spacing, start, (0, 0)).reshape(1, n, 1)
    assert error(Grappa(lamda=1e-14).fill(torch.where(uniform, full, 0), model(full, uniform, separate)), full) < 1e-6


def test_batches_with_masks_of_their_own_give_what_single_planes_do() -> None:
    full = torch.stack([obedient((40, 24), 4, seed=i) for i in range(4)]).reshape(2, 2, 4, 40, 24)
    lines = [comb(40, 2, 0, (10, 30)), comb(40, 3, 1, (8, 32))]
    mask = torch.stack(lines)[:, None, None, :, None]
    found = Grappa(lamda=1e-14).fill(full * mask, model(full, mask))
    assert error(found, full) < 1e-5
    for i, j in ((0, 0), (1, 1)):
        one = Grappa(lamda=1e-14).fill(full[i, j] * mask[i, 0], model(full[i, j], mask[i, 0]))
        assert error(found[i, j], one) < 1e-9


@pytest.mark.parametrize("n", [1, 7])
def test_both_axes(n: int) -> None:
    """Alone, and as planes of a 3-D scan whose kernels differ."""
    full = torch.stack([obedient((40, 36), 8, both=True, seed=i) for i in range(n)])
    x = (torch.arange(n) - n // 2) / n
    if n > 1:
        common = torch.stack([obedient((40, 36), 8, both=True, seed=0) for _ in range(n)])
        phases = torch.stack([torch.exp(2j * torch.pi * x * (c % 3 - 1)) for c in range(8)], 1).to(full.dtype)
        scales = torch.randn(n, 1, 1, 1, dtype=full.dtype, generator=torch.Generator().manual_seed(9))
        full = common * phases[..., None, None] * scales
    mask = torch.zeros(1, 40, 36, dtype=torch.bool)
    mask[:, 1::2, ::2] = True
    mask[:, 8:32, 6:30] = True
    assert error(Grappa(lamda=1e-14).fill(full * mask, model(full, mask)), full) < 1e-5


def naive(y: NDArray[np.complex128], spacing: int, start: int, block: tuple[int, int], lamda: float) -> NDArray[np.complex128]:
    """Griswold's method by loops, 2 lines of 5 points."""
    _, ny, nx = y.shape
    padded = np.pad(y, ((0, 0), (spacing, 2 * spacing), (2, 2)))

    def around(line: int, x: int) -> NDArray[np.complex128]:
        return padded[:, line + spacing : line + 2 * spacing + 1 : spacing, x : x + 5].ravel()

    filled = y.copy()
    for offset in range(1, spacing):
        places = [(i, x) for i in range(block[0], block[1] - spacing) for x in range(2, nx - 2)]
        s = np.array([around(*place) for place in places])
        t = np.array([y[:, i + offset, x] for i, x in places])
        gram = s.conj().T @ s
        weight = lamda * np.trace(gram).real / len(gram)
        kernel = np.linalg.solve(gram + weight * np.eye(len(gram)), s.conj().T @ t)
        for i in range(start - spacing, ny, spacing):
            if 0 <= i + offset < ny and not block[0] <= i + offset < block[1]:
                for x in range(nx):
                    filled[:, i + offset, x] = around(i, x) @ kernel
    return filled


def test_a_naive_implementation_agrees() -> None:
    random = torch.Generator().manual_seed(1)
    full = torch.randn(3, 30, 20, dtype=torch.complex128, generator=random)
    block = (10, 21)  # the comb has lines 10 and 19 beside it, and 22
    mask = comb(30, 3, 1, block)
    y = full * mask[:, None]
    found = Grappa(lamda=1e-2, lines=2).fill(y, model(full, mask.reshape(1, 30, 1)))
    assert error(found, torch.from_numpy(naive(y.numpy(), 3, 1, block, 1e-2))) < 1e-10


def test_lines_that_were_left_out_on_purpose_stay_zero() -> None:
    full = obedient((48, 32), 4)
    mask = comb(48, 2, 0, (14, 34)).reshape(1, 48, 1)
    mask[:, :10] = False
    found = Grappa(lamda=1e-14).fill(full * mask, model(full, mask))
    assert (found[:, :10] == 0).all()
    # The kernels at the end of what was acquired reach beyond it.
    assert error(found[:, 14:], full[:, 14:]) < 1e-6


def test_scale_and_noise() -> None:
    """The weight that is chosen grows with the noise, and an image with its samples."""
    full = obedient((48, 32), 6)
    random = torch.Generator().manual_seed(2)
    full = full + 0.3 * torch.randn(full.shape, dtype=full.dtype, generator=random)
    mask = comb(48, 2, 0, (14, 34)).reshape(1, 48, 1)
    image = Grappa()(full * mask, model(full, mask))
    assert error(Grappa()(1e-20 * full * mask, model(full, mask)) * 1e20, image) < 1e-6
    errors = [error(Grappa(lamda=w).fill(full * mask, model(full, mask)), full) for w in (1e-9, 1e-1)]
    assert error(Grappa().fill(full * mask, model(full, mask)), full) < min(errors)
    nothing = torch.zeros_like(full)
    assert (Grappa()(nothing, model(full, mask)) == 0).all()


def test_combs() -> None:
    def of(text: str) -> Comb | None:
        return Comb.of(torch.tensor([c == "x" for c in text]))

    assert of("x..x..x..x") == Comb(0, 3, 4)
    assert of(".x.xxxxx.x.") == Comb(1, 2, 5)
    assert of("..xxxx..") == Comb(2, 1, 4)
    assert of("x...xx..x...x") == Comb(0, 4, 4)
    assert of("x..xxxx..x.x") is None
    assert of("x.x..x.x") is None
    assert of("....") is None


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (comb(48, 3, 0, (20, 23)), r"3 reference lines, 9 are needed \(spacing 3, 4 coils\)"),
        (comb(48, 3, 0, (0, 0)), "no reference lines, 9 are needed"),
        (torch.rand(48, generator=torch.Generator().manual_seed(0)) < 0.5, "the sampled lines are not evenly spaced"),
        (torch.zeros(48, dtype=torch.bool), "not evenly spaced"),
    ],
)
def test_refusals(lines: Tensor, match: str) -> None:
    full = obedient((48, 32), 4)
    mask = lines.reshape(1, 48, 1)
    with pytest.raises(InputError, match=match):
        Grappa()(full * mask, model(full, mask))


def test_refusals_along_both_axes_and_of_options() -> None:
    full = obedient((40, 36), 8, both=True)
    mask = torch.zeros(1, 40, 36, dtype=torch.bool)
    mask[:, ::2, ::2] = True
    mask[:, 16:22, 16:20] = True
    with pytest.raises(InputError, match=r"6 x 4 reference samples, 6 x 6 are needed \(spacing 2 x 2, 8 coils\)"):
        Grappa()(full * mask, model(full, mask))
    mask[:, 2::4] = mask[:, 2::4].roll(1, -1)
    with pytest.raises(InputError, match="sampled points are not evenly spaced"):
        Grappa()(full * mask, model(full, mask))
    with pytest.raises(InputError, match="lamda must be finite"):
        Grappa(lamda=-1.0)
    with pytest.raises(InputError, match="a kernel of 3 lines"):
        Grappa(lines=3)
    assert "grappa" not in unasked()


def errors_of(path: Path, wanted: NDArray[np.float64]) -> dict[str, float]:
    found = {}
    with recon.open(path) as opened:
        for method in ("sense", "grappa", "zero-filled"):
            image = np.abs(opened.reconstruct(method=method)[0].numpy())
            found[method] = float(np.linalg.norm(image - wanted) / np.linalg.norm(wanted))
    return found


@pytest.mark.parametrize(
    ("factor", "factor_z", "mode"), [(2, 1, "embedded"), (3, 1, "separate"), (2, 2, "embedded"), (2, 2, "separate")]
)
def test_the_error_is_close_to_that_of_sense(factor: int, factor_z: int, mode: str, tmp_path: Path) -> None:
    if factor_z == 1:
        protocol = ScanProtocol((64, 64, 1), (0.24, 0.24, 0.005))
    else:  # the readout along the axis of the ring of coils
        geometry = Geometry(read_dir=(0, 0, 1), phase_dir=(1, 0, 0), slice_dir=(0, 1, 0))
        protocol = ScanProtocol((8, 28, 28), (0.24, 0.24, 0.24), readout_oversampling=1, geometry=geometry)
    whole = cartesian(protocol, Phantom(SHAPES), head_coils(8), coil_covariance(8, NOISE))
    scan = accelerate(whole, factor, factor_z, calibration=24 if factor_z == 1 else 14, mode=mode)
    write_scan(scan, tmp_path / "scan.h5")
    errors = errors_of(tmp_path / "scan.h5", np.sqrt((np.abs(true_image(whole, whole.coils)) ** 2).sum(0)).squeeze())
    assert errors["grappa"] < 1.25 * errors["sense"]
    assert errors["grappa"] < 0.3 * errors["zero-filled"]
