"""ISMRMRD HDF5 files, read only: acquisition headers in one read, samples in contiguous or strided blocks.

Nothing here writes, creates, locks for writing or changes a time stamp (``ismrmrd.Dataset(path)`` does, by default). Sizes are
checked before memory is asked for, since a damaged file may claim anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from kspace.errors import InputError
from kspace.io.hdf5 import check_self_contained, guard, open_unguarded
from kspace.io.hdf5_heap import LIST, check_heaps, check_list
from kspace.io.mrd.recording import is_recording

# Memory of one block of samples: HDF5 copies every readout once, and a small block is copied on from the cache.
BLOCK_BYTES = 16 * 2**20
LISTS = ("data", "traj")
HEAD_FIELDS = {
    "flags", "number_of_samples", "active_channels", "discard_pre", "discard_post", "center_sample", "encoding_space_ref",
    "sample_time_us", "position", "read_dir", "phase_dir", "slice_dir", "patient_table_position", "idx", "measurement_uid",
    "acquisition_time_stamp", "physiology_time_stamp", "user_int", "user_float", "trajectory_dimensions",
}  # fmt: skip


def open_file(path: Path) -> h5py.File:
    """The file, opened read only; not under `guard`, where a mistake of ours would pass for damage.

    Raises
    ------
    InputError
        As `kspace.io.hdf5.open_unguarded`; of a recorded stream, saying so.
    """
    try:
        return open_unguarded(path)
    except InputError:
        if is_recording(path):
            what = "this is a recorded MRD stream, expected an ISMRMRD .h5 file"
            raise InputError(what, path, "give it to recon run") from None
        raise


def find_group(file: h5py.File, path: Path, group: str | None) -> h5py.Group:
    """The one group that holds ``xml`` and ``data``; `group` names it where there are several.

    Raises
    ------
    InputError
        If there is none (saying so where the file looks like a fastMRI file) or more than one, or parts of it lie in other
        files.
    """
    with guard(path):
        check_self_contained(file, path)
        names = [name for name in file if _is_scan(file, name)]
        half = [name for name in file if isinstance(file.get(name), h5py.Group) and {"xml", "data"} & set(file[name])]
        found = ", ".join(list(file)[:8]) or "nothing"
    if group is not None:
        if group not in names:
            raise InputError(
                f"no raw scan in group '{group}', there are: {', '.join(names) or 'none'}", path, "name one of them"
            )
        return file[group]
    if len(names) == 1:
        return file[names[0]]
    if names:
        raise InputError(f"{len(names)} raw scans in one file, in the groups {', '.join(names)}", path, "name one of them")
    if "kspace" in file:
        raise InputError(
            "HDF5 in fastMRI's layout (dataset 'kspace'), not ISMRMRD", path, "use the commands for fastMRI data sets on it"
        )
    if half:
        lacking = "acquisitions ('data')" if "xml" in file[half[0]] else "XML header ('xml')"
        raise InputError(f"the ISMRMRD group '{half[0]}' has no {lacking}", path, "convert the scan again")
    raise InputError(
        f"HDF5 but not ISMRMRD: expected a group with 'xml' and 'data', found {found}", path, "give an ISMRMRD or fastMRI file"
    )


def reopen_group(file: h5py.File, path: Path, name: str) -> h5py.Group:
    """The group that `find_group` found before."""
    with guard(path):
        return file[name]


def _is_scan(file: h5py.File, name: str) -> bool:
    group = file.get(name)
    return isinstance(group, h5py.Group) and all(isinstance(group.get(part), h5py.Dataset) for part in ("xml", "data"))


def read_xml(group: h5py.Group, path: Path) -> bytes:
    """The XML header, as stored."""
    with guard(path):
        dataset = group["xml"]
        check_list(dataset, path)
        value = dataset[(0,) * dataset.ndim] if dataset.size == 1 else None
    if value is None:
        raise InputError(f"the XML header is stored as {dataset.size} texts, expected one", path, "convert the scan again")
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise InputError(f"the XML header is stored as {dataset.dtype}, expected text", path, "convert the scan again")
    return value


def read_acquisition_headers(group: h5py.Group, path: Path) -> np.ndarray:
    """Acquisition headers ``(readout,)``, structured as ISMRMRD defines them, without any samples.

    Raises
    ------
    InputError
        If there are none, they are not ISMRMRD's, or they and the samples stored for them do not agree in size.
    """
    with guard(path):
        dataset = group["data"]
        stored, plist = dataset.id.get_storage_size(), dataset.id.get_create_plist()
    size = path.stat().st_size
    with guard(path):
        _check_acquisitions(dataset, path)
    plain = plist.get_nfilters() == 0
    needed = dataset.size * dataset.dtype.itemsize
    if needed > (stored if plain else 1000 * size):
        raise InputError(
            f"{dataset.size} acquisitions are announced ({needed} bytes) and {stored} bytes stored: it was not written whole",
            path,
            "copy it again from the scanner",
        )
    with guard(path):
        raw = plain and plist.get_layout() == h5py.h5d.CHUNKED
        records = _raw_records(dataset) if raw else dataset.fields("head")[:]
    headers = records["head"] if raw else records
    sizes = headers["active_channels"].astype(np.int64) * headers["number_of_samples"]
    if raw:
        _refuse_lengths(2 * sizes, records["data"]["length"], headers, path)
        with guard(path):
            for name in set(LISTS) & set(records.dtype.names or ()):
                check_heaps(group.file, path, records[name])
    claimed = 8 * int(np.sum(sizes))
    if claimed > size:
        raise InputError(
            f"the acquisition headers claim {claimed} bytes of samples, the file has {size}",
            path,
            "copy it again from the scanner",
        )
    return np.ascontiguousarray(headers)


def _raw_records(dataset: h5py.Dataset) -> np.ndarray:
    """The records as they lie in the file, the lists of samples as their descriptors (length, address, index).

    HDF5 fetches all samples even where only the acquisition headers are asked for, which made opening a scan as slow as
    reading it; and it follows a damaged descriptor wherever it points, so its length is checked first.
    """
    file_type, n = dataset.id.get_type(), dataset.shape[0]
    names = [file_type.get_member_name(i).decode() for i in range(file_type.get_nmembers())]
    kept = {
        name: i for i, name in enumerate(names) if name == "head" or (name in LISTS and _is_list(file_type.get_member_type(i)))
    }
    record = np.dtype(
        {
            "names": list(kept),
            "formats": [LIST if name in LISTS else file_type.get_member_type(i).dtype for name, i in kept.items()],
            "offsets": [file_type.get_member_offset(i) for i in kept.values()],
            "itemsize": file_type.get_size(),
        }
    )
    pieces = (dataset.id.read_direct_chunk((start,))[1] for start in range(0, n, dataset.chunks[0]))
    return np.frombuffer(b"".join(pieces), record)[:n]


def _is_list(member: h5py.h5t.TypeID) -> bool:
    return bool(member.get_class() == h5py.h5t.VLEN and member.get_size() == LIST.itemsize)


def _refuse_lengths(expected: np.ndarray, stored: np.ndarray, headers: np.ndarray, path: Path) -> None:
    wrong = np.flatnonzero(expected != stored)
    if len(wrong):
        i = int(wrong[0])
        n_coils, n = int(headers["active_channels"][i]), int(headers["number_of_samples"][i])
        raise InputError(
            f"readout {i} holds {int(stored[i])} numbers, its head says 2 x {n_coils} channels x {n} samples",
            path,
            "the file is damaged or badly converted",
        )


def _check_acquisitions(dataset: h5py.Dataset, path: Path) -> None:
    fields = dataset.dtype.names or ()
    if not {"head", "data"} <= set(fields) or HEAD_FIELDS - set(dataset.dtype["head"].names or ()):
        raise InputError(
            f"the readouts are not ISMRMRD acquisitions (type {str(dataset.dtype)[:80]})", path, "convert the scan again"
        )
    base = h5py.check_vlen_dtype(dataset.dtype["data"])
    if base is None or np.dtype(base) != np.float32:
        raise InputError(
            f"the samples are stored as {dataset.dtype['data']}, expected lists of float32", path, "convert the scan again"
        )
    if dataset.ndim != 1 or dataset.size == 0:
        raise InputError(f"no acquisitions (shape {dataset.shape})", path, "give a file with raw data")


def blocks(readouts: np.ndarray, readout_bytes: int) -> Iterator[slice]:
    """Cut sorted readout numbers ``(n,)`` into few strided slices of bounded size, in order.

    Interleaved slices or repetitions are every n-th readout: a strided read of HDF5 is as fast as a contiguous one.
    """
    most = max(1, BLOCK_BYTES // max(readout_bytes, 1))
    i = 0
    while i < len(readouts):
        step = int(readouts[i + 1] - readouts[i]) if i + 1 < len(readouts) else 1
        breaks = np.flatnonzero(np.diff(readouts[i : i + most]) != step)
        n = int(breaks[0]) + 1 if len(breaks) else min(most, len(readouts) - i)
        yield slice(int(readouts[i]), int(readouts[i + n - 1]) + 1, step)
        i += n


def read_samples(group: h5py.Group, path: Path, headers: np.ndarray, readouts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``(readout number, complex64 (coil, sample))`` for the given readouts in ascending order.

    Only these readouts are read, block by block, and no block outlives the next.

    Raises
    ------
    InputError
        If a readout does not hold the number of samples that its head states, or holds NaN or infinite ones.
    """
    wanted = np.unique(np.asarray(readouts, dtype=np.int64))
    if not len(wanted):
        return
    sizes = headers["active_channels"].astype(np.int64) * headers["number_of_samples"]
    shapes = dict(
        zip(
            wanted.tolist(),
            zip(*(headers[n][wanted].tolist() for n in ("active_channels", "number_of_samples")), strict=True),
            strict=True,
        )
    )
    samples = group["data"].fields("data")
    for block in blocks(wanted, 8 * int(sizes[wanted].max())):
        with guard(path):
            lists = samples[block]
        _check_finite(lists, block, path)
        for number, values in zip(range(block.start, block.stop, block.step), lists, strict=True):
            shape = shapes[number]
            if values.size != 2 * shape[0] * shape[1]:
                one = np.array([number])
                _refuse_lengths(2 * sizes[one], np.array([values.size]), headers[one], path)
            yield number, values.view(np.complex64).reshape(shape)


def read_trajectory(group: h5py.Group, path: Path, headers: np.ndarray, number: int) -> np.ndarray:
    """The trajectory of one readout, float32 ``(sample, dimension)``.

    Raises
    ------
    InputError
        If it does not hold what its head states, or holds NaN or infinite values.
    """
    shape = int(headers["number_of_samples"][number]), int(headers["trajectory_dimensions"][number])
    with guard(path):
        values = group["data"].fields("traj")[number : number + 1][0]
    if values.size != shape[0] * shape[1] or not np.isfinite(values).all():
        what = f"{values.size} trajectory values, {int(np.count_nonzero(~np.isfinite(values)))} of them NaN or infinite"
        raise InputError(f"readout {number} has {what}, expected {shape[0]} x {shape[1]}", path, "convert the scan again")
    return np.asarray(values).reshape(shape)


def _check_finite(lists: np.ndarray, block: slice, path: Path) -> None:
    # The sum is the cheapest test; it may overflow in a good file, so a suspicious one is looked at closely.
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.array([np.add.reduce(values) for values in lists])
    for i in np.flatnonzero(~np.isfinite(sums)):
        bad = int(np.count_nonzero(~np.isfinite(lists[i])))
        if bad:
            number = block.start + i * block.step
            raise InputError(f"readout {number} has {bad} NaN or infinite values", path, "the raw data are corrupt: scan again")
