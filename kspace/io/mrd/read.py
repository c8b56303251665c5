"""Raw scans in: an ISMRMRD file opened cheaply, and its images loaded one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kspace.container import Header, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.io.checksums import sha256
from kspace.io.mrd import file as mrd_file
from kspace.io.mrd.assemble import image_header, load_image
from kspace.io.mrd.complete import find_incomplete
from kspace.io.mrd.echo_planar import Trajectory, epi_trajectories, name_echo_trains
from kspace.io.mrd.flags import NOISE
from kspace.io.mrd.header import Encoding, MrdHeader, parse_header
from kspace.io.mrd.noncartesian import EncodingReadouts, TrajectoryOptions, describe_readouts
from kspace.io.mrd.sort import ReadoutPlan, check_readouts, find_lender, plan_encoding
from kspace.noise import Noise, noise_covariance
from kspace.noncartesian.frames import frames_of

MOST_FOR_MAPS = 512  # readouts: the memory of a long series is that of a frame


class MrdScan:
    """A raw scan: what is in it, known from its acquisition headers; samples are read when an image is loaded.

    Made by `open_scan`. The file is opened for each read and closed again, always read only.

    Attributes
    ----------
    ghost
        What is done about the odd-even phase of echo-planar readouts, see `kspace.epi.place.GHOST`.
    """

    def __init__(
        self,
        path: Path,
        group: str,
        header: MrdHeader,
        headers: np.ndarray,
        noise: Noise | None,
        trajectories: dict[int, Trajectory],
    ) -> None:
        self._path, self._group, self._header, self._heads, self._noise = path, group, header, headers, noise
        self._warnings = list(header.warnings)
        self._plans = tuple(
            plan_encoding(e, header, headers, path, self._warnings, trajectories.get(e.index)) for e in header.encodings
        )
        self._lenders = tuple(find_lender(plan, self._plans) for plan in self._plans)
        self._plans = tuple(
            plan if lender is None else replace(plan, encoding=replace(plan.encoding, calibration="separate"))
            for plan, lender in zip(self._plans, self._lenders, strict=True)
        )
        self._whole = self._plans  # before `split`
        self._incomplete = [find_incomplete(plan, headers, self._warnings) for plan in self._plans]
        self._digest: str | None = None
        self.ghost = "auto"
        self.trajectory = TrajectoryOptions()

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def xml(self) -> str:
        """The XML header as it stands in the file."""
        return self._header.xml

    @property
    def encodings(self) -> tuple[Encoding, ...]:
        """The encoding spaces of the header, in its order; ``n_readouts`` is 0 for those that nothing was acquired in."""
        return tuple(plan.encoding for plan in self._plans)

    @property
    def study(self) -> dict[str, Any]:
        """Facts of the XML header under ISMRMRD's names, where present; see `kspace.container.Header.study`."""
        return dict(self._header.study)

    @property
    def coil_names(self) -> tuple[str, ...]:
        """Names of the receive coils, empty where the header has none."""
        return self._header.coil_names

    @property
    def n_readouts(self) -> int:
        """Number of readouts in the file, of whatever kind."""
        return len(self._heads)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was noticed and assumed so far; grows as images are loaded."""
        return tuple(dict.fromkeys(self._warnings))

    @property
    def noise(self) -> Noise | None:
        """The noise scan in the file, None where there is none."""
        return self._noise

    def sha256(self) -> str:
        """Digest of the file, computed when first asked for."""
        if self._digest is None:
            self._digest = sha256(self._path)
        return self._digest

    def images(self, encoding: int = 0) -> list[ImageIndex]:
        """Complete images of an encoding, sorted (repetition fastest but for the slice, then phase, set, contrast).

        Raises
        ------
        InputError
            If the encoding does not exist, or is one that cannot be reconstructed (radial, spiral).
        """
        plan = self._plan(encoding)
        incomplete = {index for index, _ in self._incomplete[encoding]}
        return sorted(index for index in plan.images if index not in incomplete)

    def incomplete(self, encoding: int = 0) -> list[tuple[ImageIndex, str]]:
        """Images that the scan began or announced and did not finish, each with the reason. Those begun can be loaded."""
        self._plan(encoding)
        return list(self._incomplete[encoding])

    def begun(self, encoding: int = 0) -> list[ImageIndex]:
        """Those of the incomplete images of an encoding that have readouts, sorted; they can be loaded."""
        plan = self._plan(encoding)
        return sorted(index for index, _ in self._incomplete[encoding] if index in plan.images)

    def load(self, encoding: int, index: ImageIndex) -> KSpace:
        """k-space of one image; only its readouts are read.

        Samples to discard are left out, reversed readouts flipped, lines placed about the centre of k-space on the grid
        of the encoded matrix (readout oversampling included), repeated lines averaged; echo-planar readouts are regridded and
        freed of the odd-even phase first. Nothing else is done to them.

        Returns
        -------
        KSpace
            Complex64 ``(coil ky kx)``, or ``(kz coil ky kx)`` for 3-D. `mask` and `n_averages` are ``(1, ky, 1)`` or
            ``(kz, 1, ky, 1)`` where all lines are whole, else with kx. Where the calibration is separate,
            `KSpace.calibration` holds it. ``header.study["calibration"]`` is `Encoding.calibration`. With embedded
            calibration, and with none, the samples for coil maps are the fully sampled block about index ``n // 2`` of
            ky (and kz): a run of rows in which no row of `mask` is missing.

        Raises
        ------
        InputError
            If the image does not exist, or its samples are damaged, NaN or infinite.
        """
        plan = self._plan(encoding)
        if index not in plan.images:
            raise InputError(f"no image {index} in encoding {encoding}", self._path, "see `recon info`")
        header = image_header(self._path, self._heads, plan, index, self._header, self._warnings)
        with mrd_file.open_file(self._path) as file:
            group = mrd_file.reopen_group(file, self._path, self._group)
            options = self.ghost, self.trajectory, self._warnings, self._lenders[encoding]
            return load_image(group, self._path, self._heads, plan, index, header, *options)

    def load_average(self, encoding: int, index: ImageIndex) -> KSpace:
        """Mean over the complete repetitions of an image, one read at a time: what coil maps can be made from where each
        repetition is undersampled without calibration, and the repetitions interleave.

        Returns
        -------
        KSpace
            As `load`; `mask` is where any repetition was sampled, `n_averages` how often in all, and the header that of
            the first repetition, with the step ``average_repetitions``.
        """
        plan = self._plan(encoding)
        if plan.encoding.has_trajectory:
            return self._load_together(plan, index)
        total: KSpace | None = None
        for repetition in self.images(encoding):
            if replace(repetition, repetition=index.repetition) == index:
                total = _add(total, self.load(encoding, repetition))
        if total is None or total.n_averages is None:
            raise InputError(f"no complete repetition of image {index} in encoding {encoding}", self._path, "see `recon info`")
        return total.after("average_repetitions", data=total.data / total.n_averages.clamp(min=1), mask=total.n_averages > 0)

    def _load_together(self, plan: ReadoutPlan, index: ImageIndex) -> KSpace:
        """Readouts of as many repetitions of an image as maps need, as one image."""
        alike = [i for i in sorted(plan.images) if replace(i, repetition=index.repetition) == index]
        numbers = np.sort(np.concatenate([plan.images[i] for i in alike]))
        first = replace(index, repetition=alike[0].repetition)
        # The centre of a volume takes the square of what that of a plane takes.
        most = MOST_FOR_MAPS * (16 if plan.encoding.is_3d else 1)
        whole = replace(plan, images={first: numbers[:most]})
        header = image_header(self._path, self._heads, whole, first, self._header, self._warnings)
        with mrd_file.open_file(self._path) as file:
            group = mrd_file.reopen_group(file, self._path, self._group)
            options = self.ghost, self.trajectory, self._warnings
            k = load_image(group, self._path, self._heads, whole, first, header, *options)
        return k.after("average_repetitions")

    def split(self, n_frames: int | None, readouts_per_frame: int | None) -> None:
        """Divide every image off the Cartesian grid into frames, in order of acquisition, numbered as repetitions.

        Parameters
        ----------
        n_frames, readouts_per_frame
            Number of frames, or readouts in each (what is left over at the end is not used); both None: images stay whole.

        Raises
        ------
        InputError
            If an encoding is Cartesian, or has too few readouts.
        """
        if n_frames is None and readouts_per_frame is None:
            self._plans = self._whole
            return
        plans = []
        for plan in self._whole:
            if plan.encoding.n_readouts and not plan.encoding.has_trajectory:
                raise InputError(
                    "a Cartesian scan has no frames to bin", self._path, "leave --frames and --spokes-per-frame out"
                )
            plans.append(replace(plan, images=frames_of(plan.images, n_frames, readouts_per_frame, self._path)))
        self._plans = tuple(plans)

    def header(self, encoding: int, index: ImageIndex) -> Header:
        """Header of one image, without reading samples."""
        return image_header(self._path, self._heads, self._plan(encoding), index, self._header, self._warnings)

    def describe_trajectory(self, encoding: int) -> str | None:
        """In words, how the readouts of an encoding are reconstructed; None on the Cartesian grid. Reads the trajectories of
        its first image."""
        plan = self._plan(encoding)
        if not plan.encoding.has_trajectory or not plan.images:
            return None
        numbers = plan.images[min(plan.images)]
        with mrd_file.open_file(self._path) as file:
            group = mrd_file.reopen_group(file, self._path, self._group)
            source = EncodingReadouts(group, self._path, self._heads, plan.encoding, plan.imaging, plan.kz)
            return describe_readouts(source, numbers)

    def _plan(self, encoding: int) -> ReadoutPlan:
        if not 0 <= encoding < len(self._plans):
            raise InputError(
                f"no encoding {encoding}, the header has {len(self._plans)}", self._path, "give another --encoding"
            )
        plan = self._plans[encoding]
        if plan.encoding.refusal is not None and plan.encoding.n_readouts:
            raise InputError(plan.encoding.refusal, self._path, _other_scan(plan.encoding))
        return plan


def open_scan(path: str | PathLike[str], group: str | None = None) -> MrdScan:
    """Open an ISMRMRD file (HDF5, version 1): its XML header, the acquisition headers of its readouts and its noise scan.

    Parameters
    ----------
    path
        The file. It is opened read only, and never changed or created.
    group
        HDF5 group of the scan, where the file has several; usually ``dataset``.

    Raises
    ------
    InputError
        If it is not a readable ISMRMRD file, or its header and readouts contradict each other, or nothing in it can be
        reconstructed. Damaged samples are found when they are read, by `MrdScan.load`.
    """
    path = Path(path)
    warnings: list[str] = []
    with mrd_file.open_file(path) as file:
        found = mrd_file.find_group(file, path, group)
        header = parse_header(mrd_file.read_xml(found, path), str(path))
        headers = mrd_file.read_acquisition_headers(found, path)
        check_readouts(headers, header, path)
        noise = read_noise_readouts(found, path, headers, header.relative_bandwidth, warnings)
        header, headers = name_echo_trains(found, path, header, headers)
        trajectories = epi_trajectories(found, path, header, headers)
        name = found.name.lstrip("/")
    scan = MrdScan(path, name, replace(header, warnings=header.warnings + tuple(warnings)), headers, noise, trajectories)
    used = [encoding for encoding in scan.encodings if encoding.n_readouts]
    if all(encoding.refusal is not None for encoding in used):
        raise InputError(used[0].refusal or "", path, _other_scan(used[0]))
    if noise is not None:
        _check_noise(noise, used, path)
    return scan


def _other_scan(encoding: Encoding) -> str:
    if "multiband" in (encoding.refusal or ""):
        return "separate them first, or give a scan without slice acceleration"
    return "only Cartesian and echo-planar scans can be reconstructed"


def read_noise(path: str | PathLike[str]) -> Noise:
    """Noise from a file of its own: its readouts that are flagged as noise scan.

    Raises
    ------
    InputError
        If the file cannot be read or has no noise readouts.
    """
    path = Path(path)
    with mrd_file.open_file(path) as file:
        found = mrd_file.find_group(file, path, None)
        header = parse_header(mrd_file.read_xml(found, path), str(path))
        headers = mrd_file.read_acquisition_headers(found, path)
        noise = read_noise_readouts(found, path, headers, header.relative_bandwidth, [])
    if noise is None:
        raise InputError(f"no noise readouts (flag 19) among {len(headers)}", path, "give a file with a noise scan")
    return noise


def read_noise_readouts(
    group: h5py.Group, path: Path, headers: np.ndarray, relative_bandwidth: float | None, warnings: list[str]
) -> Noise | None:
    """Noise from the readouts of an open file that are flagged as noise scan; None where there are none.

    `headers` are the acquisition headers ``(readout,)`` of the file.

    Raises
    ------
    InputError
        If these readouts contradict each other in channels or dwell time.
    """
    numbers = np.flatnonzero(headers["flags"] & NOISE)
    numbers = numbers[headers["number_of_samples"][numbers] > 0]
    if not len(numbers):
        return None
    channels, dwells = np.unique(headers["active_channels"][numbers]), np.unique(headers["sample_time_us"][numbers])
    if len(channels) > 1:
        raise InputError(
            f"noise readouts have {' and '.join(map(str, channels))} channels, expected one number",
            path,
            "convert the scan again",
        )
    if len(dwells) > 1:
        shown = " and ".join(f"{dwell:g}" for dwell in dwells)
        raise InputError(
            f"noise readouts have dwell times of {shown} us, expected one", path, "convert the scan again, or give --no-whiten"
        )
    if relative_bandwidth is None:
        warnings.append("no relativeReceiverNoiseBandwidth in the header: taken as 1 (Siemens receivers have about 0.79)")
    covariance, n_samples = noise_covariance(_inner(group, path, headers, numbers))
    return Noise(covariance, _dwell(float(dwells[0])), n_samples, relative_bandwidth or 1.0, str(path))


def _inner(group: h5py.Group, path: Path, headers: np.ndarray, numbers: np.ndarray) -> Iterable[np.ndarray]:
    """The samples that the acquisition headers do not tell to discard."""
    for number, samples in mrd_file.read_samples(group, path, headers, numbers):
        pre, post = int(headers["discard_pre"][number]), int(headers["discard_post"][number])
        if pre + post >= samples.shape[1]:
            raise InputError(
                f"noise readout {number} discards {pre} + {post} of its {samples.shape[1]} samples",
                path,
                "convert the scan again",
            )
        yield samples[:, pre : samples.shape[1] - post]


def _dwell(sample_time_us: float) -> float | None:
    return sample_time_us * 1e-6 if 0 < sample_time_us < np.inf else None


def _check_noise(noise: Noise, encodings: list[Encoding], path: Path) -> None:
    n_coils = noise.covariance.shape[0]
    for encoding in encodings:
        if encoding.refusal is None and encoding.n_coils != n_coils:
            raise InputError(
                f"the noise readouts have {n_coils} channels, the imaging readouts {encoding.n_coils}", path, "convert again"
            )


def _add(total: KSpace | None, k: KSpace) -> KSpace:
    """Running sum of samples and of how often they were measured."""
    assert k.n_averages is not None  # `MrdScan.load` always counts
    weighted = k.data * k.n_averages
    if total is None:
        return replace(k, data=weighted)
    assert total.n_averages is not None
    counts = total.n_averages + k.n_averages
    return replace(total, data=total.data + weighted, n_averages=counts, mask=counts > 0)
