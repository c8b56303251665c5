"""How to reconstruct: the options of ``recon run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kspace.errors import InputError
from recon.methods.precision import Precision

FORMATS = ("mrd", "dicom", "nifti", "png", "html", "fastmri")
USUAL = ("mrd", "dicom", "nifti", "png")


@dataclass(frozen=True)
class RunOptions:
    """How to reconstruct.

    Attributes
    ----------
    method
        rss, zero-filled, sense, grappa, l1-wavelet, tv, llr (series of frames), or a generator (recon models lists the bundled
        ones).
    weights
        File of weights (.safetensors) for a generator, instead of the bundled ones.
    refine
        What follows a generator: stack (default), the mixture of L1-wavelet, generator and refined generator that predicts
        held-out samples of the scan best; residual, a sparse correction by what the samples say against the generator's image;
        none, the network's own image.
    adapt
        Seconds of scan-specific training of a generator on the acquired samples of the volume, before it reconstructs; it stops
        earlier where samples that no step sees are not predicted better. Default: none.
    adapt_steps
        Most steps of this training, each on one slice.
    save_weights
        File (.safetensors) for the adapted weights. Its neighbour with the suffix .adaptation says where the training stands:
        run again with more time or steps, it goes on there.
    lamda
        Regularisation weight; for l1-wavelet and tv relative to max|A^H y|. Default: the method's own.
    tolerance
        Relative residual of the normal equations at which sense stops. Default: 1e-6; off the grid where only the noise is left
        that a noise scan measured, and without one 3e-4, of volumes 3e-5: further iterations fit the noise.
    maps
        Coil maps: espirit or jsense, from the acquired calibration samples, or a file (.npy, or .h5 with a dataset 'maps')
        holding complex ([slice,] coil, y, x), or (coil, z, y, x) in 3-D,
        of all channels of the raw file, not whitened.
    calibration_width
        At most this many central lines and points are used for the maps.
    virtual_coils
        Compress to this many virtual coils, from acquired samples.
    noise
        ISMRMRD file whose noise scan is used instead of the one in the input.
    no_whiten
        Do not whiten, even where there is a noise scan.
    partial_fourier
        What to do where a side of k-space was not acquired: leave it zero, or fill it by POCS.
    ghost
        What is done about the Nyquist ghost of echo-planar scans: auto and linear fit a line to the phase of the navigators,
        polynomial one of fourth order; entropy minimises the entropy of each image, as auto does where there are no navigators.
    trajectory
        File with kx and ky of every imaging readout in place of what the readouts carry: .npy, real (readout, sample, 2), or 3
        with kz, or the Pulseq sequence, .seq (needs the extra pulseq).
    trajectory_units
        Units of the trajectory: fraction of the matrix (+-0.5), grid (+-n/2, cycles per field of view), 1/m, rad (per pixel,
        +-pi) or rad/m. Default: guessed from the largest |k|.
    gradient_delay
        Delays of radial readouts: auto estimates them from opposite spokes and corrects them.
    density
        Density compensation of samples off the grid, for zero-filled images, coil maps and generators: pipe, by iteration, or
        voronoi, the area of each sample's cell.
    frames
        Divide the readouts of each non-Cartesian image into this many frames, in order of acquisition.
    spokes_per_frame
        The same by the number of readouts of a frame.
    conjugate
        Conjugate the samples first, for scanners with the other sign of the Fourier exponent.
    encoding
        Reconstruct only this encoding of the file (default: each).
    slices
        Only these slices, e.g. 0,3-5.
    repetitions
        Only these repetitions, e.g. 0,3-5.
    incomplete
        Reconstruct images too whose acquisition was begun and not finished.
    format
        What to write, separated by commas: mrd, dicom, nifti, png, html (one page with images and evidence), fastmri (a
        submission to the fastMRI challenges; always written for fastMRI input). Default: mrd,dicom,nifti,png, and html for a
        generator whose evidence is not none. A JSON record is always written.
    complex
        Write complex MRD and NIfTI images instead of magnitudes.
    mrd_pixels
        How MRD files store magnitudes: float32, or uint16 for scanners, one scale per series, with integer window, slope and
        intercept in the attributes.
    device
        Where the method runs: auto is cuda where there is one, else cpu.
    precision
        Of networks: auto is bf16 where the hardware multiplies it, else fp32. Everything else is fp32.
    evidence
        What is measured of a generator's images (docs/TRUST.md): full; basic, without uncertainty and stability; none.
    guard
        Whether a generator's image outside of what its weights were trained on is delivered: warn says what is outside, strict
        delivers the classical image instead, off does not look.
    classical
        Classical image beside a generator's, delivered in its place where the evidence is against it or the network fails:
        sense, l1-wavelet or none.
    repeats
        Reconstructions for the uncertainty; bundled weights are calibrated for the default. 0: none.
    strict
        Exit with status 3 where a classical image was delivered in place of a generator's.
    force
        Overwrite existing outputs.
    """

    method: str = "sense"
    weights: Path | None = None
    refine: Literal["stack", "residual", "none"] | None = None
    adapt: float | None = None
    adapt_steps: int = 60
    save_weights: Path | None = None
    lamda: float | None = None
    tolerance: float | None = None
    maps: str = "espirit"
    calibration_width: int = 24
    virtual_coils: int | None = None
    noise: Path | None = None
    no_whiten: bool = False
    partial_fourier: Literal["zero-filled", "pocs"] = "zero-filled"
    ghost: Literal["auto", "linear", "polynomial", "entropy", "none"] = "auto"
    trajectory: Path | None = None
    trajectory_units: Literal["fraction", "grid", "1/m", "rad", "rad/m"] | None = None
    gradient_delay: Literal["auto", "none"] = "auto"
    density: Literal["pipe", "voronoi"] = "pipe"
    frames: int | None = None
    spokes_per_frame: int | None = None
    conjugate: bool = False
    encoding: int | None = None
    slices: str | None = None
    repetitions: str | None = None
    incomplete: bool = False
    format: str | None = None
    complex: bool = False
    mrd_pixels: Literal["float32", "uint16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    evidence: Literal["full", "basic", "none"] = "full"
    guard: Literal["warn", "strict", "off"] = "warn"
    classical: Literal["sense", "l1-wavelet", "none"] = "sense"
    repeats: int = 4
    strict: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.no_whiten and self.noise is not None:
            raise InputError("--noise is for whitening, --no-whiten forbids it", "the options", "give one of them")
        if self.frames is not None and self.spokes_per_frame is not None:
            raise InputError(
                "both give the number of readouts of a frame", "--frames and --spokes-per-frame", "give one of them"
            )
        for option, value in (("--frames", self.frames), ("--spokes-per-frame", self.spokes_per_frame)):
            if value is not None and value < 1:
                raise InputError(f"{value} is no number of them", option, "give at least 1")
        if self.adapt is None and (self.save_weights is not None or self.adapt_steps != RunOptions.adapt_steps):
            raise InputError("nothing is adapted", "--save-weights or --adapt-steps", "add --adapt SECONDS, or leave it out")
        if self.adapt is not None and not 0 < self.adapt < float("inf"):
            raise InputError(f"{self.adapt:g} is no time", "--adapt", "give seconds, more than 0")
        if self.adapt_steps < 1:
            raise InputError(f"{self.adapt_steps} steps", "--adapt-steps", "give at least 1")
        if self.save_weights is not None and self.save_weights.suffix != ".safetensors":
            raise InputError("weights are files that end in .safetensors", f"--save-weights {self.save_weights}", "rename it")
        if self.complex and not {"mrd", "nifti"} & set(self.formats):
            raise InputError("only MRD and NIfTI images can be complex", "--complex", f"--format is {self.format}")
        if self.mrd_pixels == "uint16" and (self.complex or "mrd" not in self.formats):
            why = "integers hold no complex images" if self.complex else "no MRD file is asked for"
            raise InputError(
                why, "--mrd-pixels uint16", "leave it out, or --complex" if self.complex else "add mrd to --format"
            )
        if not 0 <= self.repeats <= 64:
            raise InputError(f"{self.repeats} repeated reconstructions", "--repeats", "give 0 to 64")
        if self.classical == "none" and self.guard == "strict":
            why = "a refused image is replaced by a classical one"
            raise InputError(f"--guard strict needs a classical image: {why}", "--classical none", "leave one out")
        if self.method == "rss" and (self.maps, self.calibration_width) != (RunOptions.maps, RunOptions.calibration_width):
            raise InputError("rss needs no coil maps", "--maps or --calibration-width", "leave it out")

    @property
    def has_frames(self) -> bool:
        """Whether images are divided into frames."""
        return self.frames is not None or self.spokes_per_frame is not None

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats to write, one by one; without a choice those of every method."""
        if self.format is None:
            return USUAL
        chosen = tuple(part.strip() for part in self.format.split(",") if part.strip())
        if unknown := [c for c in chosen if c not in FORMATS]:
            raise InputError(f"unknown format '{unknown[0]}'", "--format", f"choose from {', '.join(FORMATS)}")
        return chosen


def checked(options: RunOptions) -> RunOptions:
    """`options`, whose values a parser has not seen, or an `InputError` that names the one that does not fit."""
    for name, hint in get_type_hints(RunOptions).items():
        value = getattr(options, name)
        alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if not any(_fits(value, one) for one in alternatives):
            wanted = " or ".join(_in_words(one) for one in alternatives)
            raise InputError(f"{value!r} is a {type(value).__name__}, expected {wanted}", name, "correct it")
    return options


def _fits(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _in_words(kind: Any) -> str:
    return ", ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else getattr(kind, "__name__", str(kind))
