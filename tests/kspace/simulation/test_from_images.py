"""Simulated k-space obeys its own description: SNR, covariance and maps are measured by Monte Carlo, not read from the code."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.fourier import fft, ifft
from kspace.io.images import find_images, read_image
from kspace.operators import Sense
from kspace.simulation.from_images import (
    SynthesisOptions,
    crop_to_matrix,
    generator,
    noise_scale,
    simulate_example,
    simulate_volume,
    support,
)
from kspace.simulation.phantom import AnalyticCoils, ellipse, head_coils
from kspace.simulation.receiver import birdcage, coupling, maps_from_images, smooth_phase, whitened_coils

SMALL = SynthesisOptions(matrix=(40, 32), coils=5, snr=(12.0, 12.0))


def _disc(n_y: int = 80, n_x: int = 64) -> Tensor:
    y, x = torch.linspace(-1, 1, n_y)[:, None], torch.linspace(-1, 1, n_x)
    return ((x**2 + y**2) < 0.5).float() * (1 + 0.5 * x + 0.3 * torch.cos(9 * y)) * 100


def test_cropping_kspace_samples_a_band_limited_picture_coarser() -> None:
    def picture(n_y: int, n_x: int) -> Tensor:
        y, x = ((torch.arange(n) - n // 2).double() / n * 2 * math.pi for n in (n_y, n_x))
        return 3 + torch.cos(5 * y)[:, None] * torch.sin(7 * x) + torch.cos(3 * y[:, None] + 2 * x)

    cropped = crop_to_matrix(picture(64, 60), (27, 32))
    torch.testing.assert_close(cropped.real.double(), picture(27, 32), atol=1e-5, rtol=0)
    assert cropped.imag.abs().max() < 1e-5
    assert torch.equal(crop_to_matrix(picture(27, 32), (27, 32)).real, picture(27, 32).float())


def test_an_interpolated_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"40 x 64 pixels \(y x\), fewer than the matrix 48 x 48.*smaller --matrix"):
        simulate_example(torch.ones(40, 64), generator(0), SynthesisOptions(matrix=(48, 48)))


def test_the_snr_is_the_mean_target_over_the_noise_of_the_optimal_combination() -> None:
    example = simulate_example(_disc(), generator(1), SMALL)
    inside = support(example.target.abs()[None])[0]
    expected = float(example.target.abs()[inside].mean()) / 12
    errors = []
    for _ in range(100):
        # The object and the receiver stay, the noise is drawn anew: what is left over by combining is noise.
        noisy = example.kspace.data - fft(example.maps * example.target)
        errors.append((example.maps.conj() * ifft(noisy)).sum(0))
        example = simulate_example(_disc(), generator(1, len(errors)), SMALL)
    residual = torch.stack(errors)
    for component in (residual.real, residual.imag):
        assert float(component.std()) == pytest.approx(expected, rel=0.01)
    assert expected == pytest.approx(math.sqrt(0.5), rel=1e-5)


def test_a_volume_has_its_snr_and_covariance_before_whitening() -> None:
    images = {f"{i}.png": _disc() * (1 + i) for i in range(2)}
    volume = simulate_volume(images, SMALL, seed=3, name="patient")
    # Unwhitened truth, without noise: what the same recipe measures when its noise level is zero.
    silent = type(volume)(volume.name, volume.keys, volume.objects, volume.coils, volume.snr, 0.0)
    truth = torch.stack([k.data for k in silent.slices(0)])
    noise = torch.cat([torch.stack([k.data for k in volume.slices(seed)]) - truth for seed in range(60)])
    samples = noise.movedim(1, 0).flatten(1)
    measured = samples @ samples.mH / samples.shape[1]
    covariance = volume.noise_covariance
    assert float((measured - covariance).abs().max()) < 0.02 * float(covariance.abs().max())
    # The optimal combination with the unwhitened maps, by the textbook formula (Roemer 1990).
    inverse = torch.linalg.inv(covariance.to(torch.complex128))
    coil_images = ifft(truth[0]).to(torch.complex128)
    inside = support(volume.objects.abs())[0]
    obj = volume.objects[0].to(torch.complex128)
    maps = torch.where(inside, coil_images / torch.where(inside, obj, 1), 0)
    weights = torch.einsum("iyx,ij->jyx", maps.conj(), inverse)
    gain = (weights * maps).sum(0).real
    residual = (weights * ifft(noise).to(torch.complex128)).sum(1)[:, inside] / gain[inside]
    magnitude = volume.objects.abs()
    std = math.sqrt(float(residual.real.var() + residual.imag.var()) / 2)
    assert float(magnitude[support(magnitude)].mean()) / std == pytest.approx(12, rel=0.01)


def test_slices_of_a_volume_share_the_receiver_and_keep_their_intensities() -> None:
    volume = simulate_volume({"a": _disc(), "b": 2 * _disc()}, SMALL, seed=0, name="p")
    ratio = volume.objects[1].abs() / volume.objects[0].abs().clamp_min(1e-9)
    inside = support(volume.objects.abs())[0]
    torch.testing.assert_close(ratio[inside], torch.full_like(ratio[inside], 2.0), atol=1e-3, rtol=0)


def test_the_example_is_a_sense_measurement_of_its_target() -> None:
    example = simulate_example(_disc(), generator(5), SynthesisOptions(matrix=(40, 32), coils=3, snr=(1e6, 1e6)))
    assert example.kspace.header.noise_std == 1.0
    assert "whiten" in example.kspace.header.steps
    assert bool(example.kspace.mask.all())
    y = Sense(example.maps, example.kspace.mask).forward(example.target)
    assert float((y - example.kspace.data).abs().square().mean()) == pytest.approx(1.0, rel=0.03)  # the noise, and nothing else


def test_maps_are_whitened_and_of_unit_root_sum_of_squares() -> None:
    rng = generator(9)
    for n_coils in (1, 2, 8):
        maps, covariance = birdcage(n_coils, rng), coupling(n_coils, rng)
        coils = whitened_coils(maps, covariance, (48, 40))
        torch.testing.assert_close(coils.maps.abs().square().sum(0), torch.ones(48, 40), atol=1e-5, rtol=0)
        torch.testing.assert_close((coils.mixing @ coils.mixing.mH).to(torch.complex128), covariance, atol=1e-5, rtol=0)
        assert float(covariance.diagonal().real.mean()) == pytest.approx(1.0)
        # Unwhitened again, they are the given ones up to one real factor per pixel.
        again = torch.einsum("ij,jyx->iyx", coils.mixing, coils.maps)
        corner = maps[:, 0, 0] / torch.linalg.vector_norm(maps[:, 0, 0])
        torch.testing.assert_close(again[:, 0, 0] / torch.linalg.vector_norm(again[:, 0, 0]), corner, atol=1e-4, rtol=0)


def test_maps_are_smooth_and_differ() -> None:
    maps = whitened_coils(birdcage(6, generator(2)), torch.eye(6), (64, 64)).maps
    assert float((maps[:, 1:] - maps[:, :-1]).abs().max()) < 0.12
    gram = (maps.flatten(1) @ maps.flatten(1).mH).abs()
    gram = gram / gram.diagonal().sqrt()[:, None] / gram.diagonal().sqrt()
    assert float((gram - torch.eye(6)).max()) < 0.97


def test_the_phase_has_the_standard_deviation_asked_for_and_is_smooth() -> None:
    fields = torch.stack([smooth_phase((48, 40), generator(i), 0.7) for i in range(400)])
    variance = (fields - fields.mean((1, 2), keepdim=True)).square().mean()
    assert float(variance.sqrt()) == pytest.approx(0.7, rel=0.05)
    assert float((fields[:, 1:] - fields[:, :-1]).abs().max()) < 0.7
    constant = smooth_phase((8, 8), generator(0), 0.0)
    assert float(constant.std()) == pytest.approx(0.0, abs=1e-6)
    offsets = torch.stack([smooth_phase((4, 4), generator(i), 0.0)[0, 0] for i in range(400)])
    assert float(torch.polar(torch.ones(400), offsets).mean().abs()) < 0.15  # uniform over the circle


def test_measured_maps_agree_with_the_coils_that_they_were_measured_from() -> None:
    coils: AnalyticCoils = head_coils(6)
    n = 64
    x = (torch.arange(n) - n // 2).double().numpy() * 0.24 / n
    maps = torch.from_numpy(coils.maps(x[None, :].repeat(n, 0), x[:, None].repeat(n, 1), np.zeros((n, n)))).to(torch.complex64)
    disc = torch.from_numpy(ellipse((0.0, 0.0), (0.09, 0.1)).image((x[None, :], x[:, None]))).to(torch.complex64)
    phase = smooth_phase((n, n), generator(3), 1.0)
    estimated = maps_from_images(maps * disc * torch.polar(torch.ones_like(phase), phase))
    cosine = (estimated.conj() * maps).sum(0).abs()
    cosine = cosine / (torch.linalg.vector_norm(estimated, dim=0) * torch.linalg.vector_norm(maps, dim=0))
    inside = cosine[disc.abs() > 0.5]
    assert float(inside.quantile(0.05)) > 0.99
    assert float(inside.min()) > 0.95  # at the object's edge the neighbourhoods are one-sided
    assert bool(estimated.isfinite().all())
    assert float(torch.linalg.vector_norm(estimated, dim=0).min()) > 0  # continued beyond the object


def test_what_is_drawn_depends_on_seed_and_names_alone() -> None:
    images = {"a": _disc(), "b": _disc() + 1}
    first = [k.data for k in simulate_volume(images, SMALL, 4, "p").slices(4)]
    torch.manual_seed(99)
    again = [k.data for k in simulate_volume(images, SMALL, 4, "p").slices(4)]
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(first[0], next(k.data for k in simulate_volume(images, SMALL, 5, "p").slices(5)))
    assert not torch.equal(first[0], next(k.data for k in simulate_volume(images, SMALL, 4, "q").slices(4)))
    code = (
        "from kspace.simulation.from_images import generator; import torch; "
        "print(float(torch.randn((), generator=generator(7, 'x/1.png'))))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(other) == float(torch.randn((), generator=generator(7, "x/1.png")))


def test_the_snr_is_drawn_between_its_limits() -> None:
    options = SynthesisOptions(matrix=(16, 16), coils=2, snr=(5.0, 50.0))
    drawn = [simulate_volume({"a": _disc()}, options, seed, "p").snr for seed in range(60)]
    assert min(drawn) >= 5
    assert max(drawn) <= 50
    assert sum(value < math.sqrt(250) for value in drawn) == pytest.approx(30, abs=12)


def test_the_support_is_the_object() -> None:
    image = torch.zeros(64, 64)
    image[20:40, 15:50] = 3.0
    inside = support(image[None])[0]
    assert bool(inside[20:40, 15:50].all())
    assert int(inside.sum()) < 1.35 * 20 * 35  # two pixels of margin, from smoothing
    assert int(inside[10:12].sum()) == 0


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(InputError, match=r"dark.png: .*empty \(all zero\)"):
        simulate_example(torch.zeros(16, 16), generator(0), SynthesisOptions(matrix=(16, 16)), "dark.png")
    for bad, message in (
        ({"coils": 0}, "--coils: 0 coils"),
        ({"snr": (0.0, 1.0)}, "signal-to-noise ratio"),
        ({"snr": (9.0, 1.0)}, "smaller first"),
        ({"matrix": (1, 9)}, "matrix is"),
        ({"phase_std": -1.0}, "--phase-std"),
    ):
        with pytest.raises(InputError, match=message):
            SynthesisOptions(**bad)  # type: ignore[arg-type]
    assert noise_scale(torch.ones(1, 8, 8), 10) == pytest.approx(math.sqrt(2) / 10)


def test_real_pictures_lie_inside_the_matrix(data_dir: Path) -> None:
    """The pictures at 512 x 512 hold nearly nothing outside the central 256 x 256 of their k-space: cropping loses little."""
    paths = find_images(data_dir / "brain_t1c" / "glioma")[::400]
    for path in paths:
        image = torch.from_numpy(read_image(path)[0])
        kept = crop_to_matrix(image, (256, 256)).abs().square().sum() * 4
        assert float(kept / image.square().sum()) > 0.995
