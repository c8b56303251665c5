"""Images to multi-coil, noisy k-space, as a scanner with these coils would have measured it.

An image is brought to the matrix by cropping its k-space, so k-space is full to its edge and nothing is undersampled at an
interpolated size: that would make reconstruction look easier than it is (Shimron et al., Implicit data crimes, PNAS 2022;
119:e2117203119, doi:10.1073/pnas.2117203119). Smooth phase, coils and correlated noise follow. What comes out is simulated: it
trains networks, it proves nothing about scans.

With maps ``S`` whitened and of unit root sum of squares, the optimally combined image ``S^H y`` of fully sampled data has white
noise of E|n|^2 = 1, and ``sqrt(1/2)`` in each of its two components. The object is scaled so that

    SNR = mean |image| in the support / sqrt(1/2).

Matched-filter combination: Roemer et al., The NMR phased array, Magn Reson Med 1990;16:192, doi:10.1002/mrm.1910160203.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kspace.container import Geometry, Header, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.fourier import centre_crop, fft, ifft
from kspace.seeds import seed_of
from kspace.simulation.phase import draw_phase, global_phase, local_phase
from kspace.simulation.realism import Frame, Realism, blur, draw_frame, other_contrast
from kspace.simulation.receiver import Receiver, birdcage, coupling, smooth_phase, whitened_coils

NOMINAL_PIXEL_M = 1e-3
NOMINAL_THICKNESS_M = 5e-3


@dataclass(frozen=True, eq=False)
class SynthesisOptions:
    """How images become k-space.

    Attributes
    ----------
    matrix
        Points ``(ky, kx)`` of k-space; images must have at least as many.
    coils
        Number of coils; those of `maps` where these are given.
    snr
        Smallest and largest signal-to-noise ratio; drawn between them, evenly in its logarithm, with `realism` more often low.
    phase_std
        Standard deviation of the smooth phase over the image, in radians; 0 for none (a constant phase stays). Without
        `realism` only.
    realism
        Frame, contrast and phase as scans have them; None: the whole image, as it is, with smooth phase.
    maps
        Coil maps measured from a scan, complex ``(coil y x)`` of any size and scale, interpolated to the matrix; drawn from
        SigPy's birdcage where None.
    covariance
        E[n n^H] between the coils of `maps`, complex ``(coil coil)`` of any scale; drawn where None.
    """

    matrix: tuple[int, int] = (256, 256)
    coils: int = 8
    snr: tuple[float, float] = (20.0, 20.0)
    phase_std: float = 1.0
    realism: Realism | None = None
    maps: Tensor | None = None
    covariance: Tensor | None = None

    def __post_init__(self) -> None:
        if min(self.matrix) < 2:
            raise InputError(f"the matrix is {self.matrix}, expected at least 2 points", "--matrix")
        if self.coils < 1:
            raise InputError(f"{self.coils} coils", "--coils", "give at least 1")
        if not 0 < self.snr[0] <= self.snr[1] < math.inf:
            raise InputError(f"the signal-to-noise ratio is {self.snr}", "--snr", "give positive numbers, the smaller first")
        if not 0 <= self.phase_std < math.inf:
            raise InputError(f"the standard deviation of the phase is {self.phase_std}", "--phase-std")


@dataclass(frozen=True, eq=False)
class Simulation:
    """One simulated slice, ready for undersampling.

    Attributes
    ----------
    kspace
        Fully sampled and whitened, ``(coil ky kx)``, ``noise_std`` 1.
    target
        The object without noise, complex64 ``(y x)``, in the units of `kspace`.
    maps
        The true coil maps, complex64 ``(coil y x)``, unit root sum of squares.
    frame
        Which part of the image it is; None: all of it.
    """

    kspace: KSpace
    target: Tensor
    maps: Tensor
    frame: Frame | None = None


def generator(*key: object) -> torch.Generator:
    """A random generator that depends on `key` alone: the same in every process and on every machine."""
    return torch.Generator().manual_seed(seed_of(repr(key)))


def simulate_example(image: Tensor, rng: torch.Generator, options: SynthesisOptions, source: str = "") -> Simulation:
    """One image to whitened multi-coil k-space, for training without a copy of the data set on disk.

    Coils, SNR, phase and noise are drawn from `rng`. 20 to 35 ms for 8 coils of 256 x 256 from 512 x 512 on one CPU core.

    Parameters
    ----------
    image
        Real or complex ``(y x)``.
    rng
        See `generator`; moved on by the call.
    options
        See there.
    source
        Name of the image, for messages.

    Raises
    ------
    InputError
        If the image is smaller than the matrix, or zero.
    """
    snr, coils = draw_snr(options, rng), draw_coils(options, rng)
    obj, frame = draw_object(image, rng, options, source)
    target = obj / noise_scale(obj[None], snr, source)
    y = fft(coils.maps * target) + complex_noise((len(coils.maps), *options.matrix), rng)
    header = replace(nominal_header(source, options.matrix), noise_std=1.0, steps=("whiten",))
    return Simulation(KSpace(y, _all_lines(options.matrix), header), target, coils.maps, frame)


def draw_object(
    image: Tensor, rng: torch.Generator, options: SynthesisOptions, source: str = ""
) -> tuple[Tensor, Frame | None]:
    """Noise-free object: complex64 ``(y x)`` in the image's units, and the frame that was drawn."""
    realism = options.realism
    if realism is None:
        phase = smooth_phase(options.matrix, rng, options.phase_std)
        return crop_to_matrix(image, options.matrix, source) * _rotor(phase), None
    frame = draw_frame(image, options.matrix, rng, realism)
    obj = crop_to_matrix(other_contrast(frame.image(image), rng, realism), options.matrix, source)
    obj = blur(obj, rng, realism)
    return obj * _rotor(draw_phase(obj.abs(), rng, realism.phase)), frame


@dataclass(frozen=True, eq=False)
class SimulatedVolume:
    """The recipe of one volume: what is common to its slices. `slices` makes them.

    Attributes
    ----------
    name
        Of the volume.
    keys
        Names of the slices, which their noise is drawn by.
    objects
        Noise-free objects, complex64 ``(slice y x)``, in the units of the images.
    coils
        The receiver.
    snr
        As drawn.
    sigma
        Root of the mean noise variance of a coil's samples, in the units of the images.
    frames
        Which part of its image each slice is; empty: all of it.
    """

    name: str
    keys: tuple[str, ...]
    objects: Tensor
    coils: Receiver
    snr: float
    sigma: float
    frames: tuple[Frame, ...] = ()

    @property
    def noise_covariance(self) -> Tensor:
        """E[n n^H] of the samples, complex64 ``(coil coil)``."""
        return (self.coils.mixing @ self.coils.mixing.mH) * self.sigma**2

    @property
    def truth(self) -> Tensor:
        """What is imaged, without noise, float32 ``(slice y x)`` over the standard deviation of whitened noise."""
        return self.objects.abs() / self.sigma

    def slices(self, seed: int) -> Iterator[KSpace]:
        """Fully sampled slices ``(coil ky kx)``, not whitened, one after the other."""
        matrix = (self.objects.shape[-2], self.objects.shape[-1])
        mask = _all_lines(matrix)
        for i, (key, obj) in enumerate(zip(self.keys, self.objects, strict=True)):
            noise = complex_noise(self.coils.maps.shape, generator(seed, key, "noise"))
            whitened = fft(self.coils.maps * obj) + noise * self.sigma
            y = torch.einsum("ij,jyx->iyx", self.coils.mixing, whitened)
            header = nominal_header(self.name, matrix)
            yield KSpace(y, mask, replace(header, index=ImageIndex(slice=i)))


def simulate_volume(images: Mapping[str, Tensor], options: SynthesisOptions, seed: int, name: str) -> SimulatedVolume:
    """Images of one patient to the recipe of a volume: one receiver, one SNR and one noise level for all slices.

    Parameters
    ----------
    images
        The slices by name, in order: real or complex ``(y x)``, of any sizes not below the matrix.
    options
        See there.
    seed, name
        What slices share depends on these alone, what they do not share on `seed` and their own name alone.

    Raises
    ------
    InputError
        If an image is smaller than the matrix, or all are zero.
    """
    rng = generator(seed, name)
    snr, coils = draw_snr(options, rng), draw_coils(options, rng)
    make = _smooth_objects if options.realism is None else _realistic_objects
    objects, frames = make(images, options, seed, name, rng)
    stack = torch.stack(objects)
    return SimulatedVolume(name, tuple(images), stack, coils, snr, noise_scale(stack, snr, name), frames)


def _smooth_objects(
    images: Mapping[str, Tensor], options: SynthesisOptions, seed: int, name: str, rng: torch.Generator
) -> tuple[list[Tensor], tuple[Frame, ...]]:
    common = smooth_phase(options.matrix, rng, options.phase_std)
    objects = []
    for key, image in images.items():
        # Phase of the receiver and of the field is much alike in neighbouring slices, not the same.
        own = smooth_phase(options.matrix, generator(seed, key, "phase"), 0.2 * options.phase_std)
        objects.append(crop_to_matrix(image, options.matrix, key) * _rotor(common + own - own.mean()))
    return objects, ()


def _realistic_objects(
    images: Mapping[str, Tensor], options: SynthesisOptions, seed: int, name: str, rng: torch.Generator
) -> tuple[list[Tensor], tuple[Frame, ...]]:
    """Slices of equal size share the frame, which holds all of them, and the map of intensities."""
    assert options.realism is not None
    realism = options.realism
    common = global_phase(options.matrix, rng, realism.phase)
    objects: dict[str, Tensor] = {}
    frames: dict[str, Frame] = {}
    for shape in dict.fromkeys(image.shape for image in images.values()):
        members = {key: image for key, image in images.items() if image.shape == shape}
        stack, shared = torch.stack(list(members.values())), generator(seed, name, tuple(shape), "shared")
        frame = draw_frame(stack.abs().amax(0), options.matrix, shared, realism)
        for key, image in zip(members, other_contrast(stack, shared, realism), strict=True):
            obj = blur(crop_to_matrix(frame.image(image), options.matrix, key), generator(seed, name, "blur"), realism)
            own = local_phase(obj.abs(), generator(seed, key, "phase"), realism.phase)
            objects[key], frames[key] = obj * _rotor(common + own), frame
    return [objects[key] for key in images], tuple(frames[key] for key in images)


def _rotor(phase: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(phase), phase)


def crop_to_matrix(image: Tensor, matrix: Sequence[int], source: str = "") -> Tensor:
    """The image at the matrix's resolution over the same field of view: its k-space cropped, its intensity kept.

    Parameters
    ----------
    image
        Real or complex ``(..., y, x)``.
    matrix
        Points ``(y, x)``.

    Returns
    -------
    Tensor
        Complex64 ``(..., y, x)``.

    Raises
    ------
    InputError
        If an axis would have to grow, which would leave the outside of k-space empty.
    """
    n_y, n_x = image.shape[-2:]
    if n_y < matrix[0] or n_x < matrix[1]:
        raise InputError(
            f"the image has {n_y} x {n_x} pixels (y x), fewer than the matrix {matrix[0]} x {matrix[1]}",
            source or None,
            "choose a smaller --matrix: an interpolated image has no outer k-space to undersample",
        )
    if (n_y, n_x) == tuple(matrix):
        return image.to(torch.complex64)
    gain = math.sqrt(matrix[0] * matrix[1] / (n_y * n_x))
    return ifft(centre_crop(fft(image.to(torch.complex64)), matrix)) * gain


def support(magnitude: Tensor) -> Tensor:
    """Support of the object: bool ``(*batch y x)``, True where the magnitude, smoothed over 5 x 5 pixels, exceeds a tenth of
    its 99th percentile over the slice."""
    smooth = torch.nn.functional.avg_pool2d(magnitude[None], 5, 1, 2, count_include_pad=False)[0]
    # kthvalue instead of quantile, which refuses large images.
    flat = smooth.flatten(-2)
    top = flat.kthvalue(max(1, math.ceil(0.99 * flat.shape[-1])), dim=-1).values
    return smooth > 0.1 * top[..., None, None]


def noise_scale(objects: Tensor, snr: float, source: str = "") -> float:
    """Standard deviation sqrt(E|n|^2) of the noise that gives objects ``(slice y x)`` this SNR.

    Raises
    ------
    InputError
        If all are zero.
    """
    magnitude = objects.abs()
    inside = magnitude[support(magnitude)]
    if inside.numel() == 0 or not float(inside.mean()) > 0:
        raise InputError("the image is empty (all zero): it has no signal-to-noise ratio", source or None)
    return math.sqrt(2) * float(inside.double().mean()) / snr


def complex_noise(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Circular complex normal noise, complex64, E|n|^2 = 1."""
    return torch.randn(tuple(shape), generator=rng, dtype=torch.complex64)


def draw_snr(options: SynthesisOptions, rng: torch.Generator) -> float:
    """A signal-to-noise ratio, even in its logarithm between the two of `options`.

    With `realism` the square of an even number says where between the two: phantoms have ratios of hundreds, most scans do not.
    """
    low, high = (math.log(value) for value in options.snr)
    place = float(torch.rand((), generator=rng))
    return math.exp(low + (high - low) * (place if options.realism is None else place**2))


def draw_coils(options: SynthesisOptions, rng: torch.Generator) -> Receiver:
    """A receiver: the measured one of `options`, or a random birdcage with random coupling."""
    maps = (
        birdcage(options.coils, rng, options.realism is not None) if options.maps is None else options.maps.to(torch.complex64)
    )
    covariance = coupling(len(maps), rng) if options.covariance is None else options.covariance
    return whitened_coils(maps, covariance, options.matrix)


def _all_lines(matrix: Sequence[int]) -> Tensor:
    return torch.ones(1, matrix[0], 1, dtype=torch.bool)


def nominal_header(source: str, matrix: Sequence[int]) -> Header:
    """Header of a simulated slice: square pixels of 1 mm, which nobody measured."""
    n_y, n_x = matrix
    fov = (n_x * NOMINAL_PIXEL_M, n_y * NOMINAL_PIXEL_M, NOMINAL_THICKNESS_M)
    return Header(
        source=source,
        encoded_matrix=(n_x, n_y, 1),
        recon_matrix=(n_x, n_y, 1),
        encoded_fov_m=fov,
        recon_fov_m=fov,
        geometry=Geometry(fov_m=fov, nominal=True),
        study={"protocolName": "simulated from images", "systemVendor": "simulated"},
    )
