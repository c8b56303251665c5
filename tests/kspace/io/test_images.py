"""Pictures of every kind come in the right way up with their values, and groups never leak from training into validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kspace.errors import InputError
from kspace.io.images import Box, box_corners, find_images, read_boxes, read_image
from kspace.simulation.from_images import crop_to_matrix
from recon.datasets.patients import PatientFiles, file_number, group_files, split_groups


@pytest.fixture
def ramp() -> np.ndarray:
    """Every pixel different, rows and columns of different number: transpositions and flips show."""
    return np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)


def _write_dicom(
    path: Path, frames: np.ndarray, slope: float = 1.0, series: str = "1.2.3", patient: str = "Ann", **more: object
) -> None:
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, "1.2.3.4"
    dataset.PatientID, dataset.SeriesInstanceUID = patient, series
    dataset.Rows, dataset.Columns = frames.shape[-2:]
    if frames.ndim == 3:
        dataset.NumberOfFrames = len(frames)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, 0
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.PixelData = frames.astype(np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def test_images_keep_their_values_with_the_top_row_first(tmp_path: Path, ramp: np.ndarray) -> None:
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp.astype(np.uint16) * 1000).save(tmp_path / "b.png")
    Image.fromarray(ramp.astype(np.float32) / 7).save(tmp_path / "c.tif")
    Image.fromarray(np.stack([ramp] * 3, -1)).save(tmp_path / "d.png")
    Image.fromarray(np.stack([ramp] * 3 + [np.full_like(ramp, 255)], -1)).save(tmp_path / "e.png")
    expected = {"a.png": ramp, "b.png": ramp * 1000.0, "c.tif": ramp.astype(np.float32) / 7, "d.png": ramp, "e.png": ramp}
    assert [path.name for path in find_images(tmp_path)] == sorted(expected)
    for name, values in expected.items():
        image = read_image(tmp_path / name)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, values[None].astype(np.float32), err_msg=name)


def test_jpeg_is_right_to_its_compression(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32) * 4, np.arange(48) * 2).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg")[0] - smooth).max() <= 4


def test_a_tiff_of_several_pages_is_a_stack(tmp_path: Path, ramp: np.ndarray) -> None:
    pages = [Image.fromarray(ramp + i) for i in range(3)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), np.stack([ramp, ramp + 1, ramp + 2]))


def test_arrays_may_be_complex_and_stacked(tmp_path: Path, ramp: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", ramp * 1j)
    np.save(tmp_path / "b.npy", np.stack([ramp, ramp + 1.5]))
    assert read_image(tmp_path / "a.npy").dtype == np.complex64
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy"), (ramp * 1j)[None].astype(np.complex64))
    np.testing.assert_array_equal(read_image(tmp_path / "b.npy")[1], ramp + 1.5)


def test_dicom_is_rescaled_and_found_without_a_suffix(tmp_path: Path, ramp: np.ndarray) -> None:
    _write_dicom(tmp_path / "IM000001", ramp, slope=2.5)
    _write_dicom(tmp_path / "frames.dcm", np.stack([ramp, ramp + 1]))
    _write_dicom(tmp_path / "inverse.dcm", ramp, PhotometricInterpretation="MONOCHROME1")
    assert [path.name for path in find_images(tmp_path)] == ["IM000001", "frames.dcm", "inverse.dcm"]
    np.testing.assert_allclose(read_image(tmp_path / "IM000001")[0], ramp * 2.5)
    np.testing.assert_array_equal(read_image(tmp_path / "frames.dcm"), np.stack([ramp, ramp + 1]))
    np.testing.assert_array_equal(read_image(tmp_path / "inverse.dcm")[0], ramp.max() - ramp)


@pytest.mark.parametrize(
    ("axes", "marked", "expected"),
    [
        # A voxel near the right, the front and the head; radiologists see the right on the left and the front on top.
        ("RAS", (6, 5, 3), (3, 1, 1)),
        ("LPS", (1, 2, 3), (3, 2, 1)),
        ("ASR", (7, 6, 2), (2, 2, 0)),  # sagittal: x grows to the back, y to the feet
        ("SAL", (8, 7, 2), (2, 0, 0)),  # the same with its first two axes exchanged
    ],
)
def test_nifti_slices_are_seen_as_radiologists_see_them(
    tmp_path: Path, axes: str, marked: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    import nibabel

    shape = {"RAS": (8, 7, 4), "LPS": (8, 7, 4), "ASR": (8, 9, 4), "SAL": (9, 8, 4)}[axes]
    data = np.zeros(shape, np.float32)
    data[marked] = 1
    towards = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1)}
    affine = np.eye(4)
    affine[:3, :3] = np.array([towards[axis] for axis in axes]).T
    nibabel.Nifti1Image(data, affine).to_filename(tmp_path / "a.nii.gz")
    image = read_image(tmp_path / "a.nii.gz")
    assert tuple(int(i) for i in np.argwhere(image == 1)[0]) == expected


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.jpg", lambda path: path.write_bytes(b"\xff\xd8\xff nothing"), r"cannot read the image .*a\.jpg.*--skip-bad"),
        ("a.png", lambda path: path.write_bytes(b""), r"cannot read the image"),
        ("a.dcm", lambda path: path.write_bytes(b"x" * 200), r"cannot read the image"),
        ("a.nii", lambda path: path.write_bytes(b"x" * 400), r"cannot read the image"),
        ("a.npy", lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True), r"cannot read .*Python objects"),
        ("a.npy", lambda path: np.save(path, np.zeros((2, 2, 2, 2))), r"the array has shape \(2, 2, 2, 2\)"),
        ("a.npy", lambda path: np.save(path, np.array([[0, np.nan], [0, 0]])), r"1 pixels are NaN"),
        ("a.npy", lambda path: np.save(path, np.array([["a", "b"], ["c", "d"]])), r"of type <U1"),
        ("a.png", lambda path: Image.new("RGB", (4, 4), (200, 0, 0)).save(path), r"coloured"),
    ],
    ids=["jpeg", "empty", "dicom", "nifti", "pickle", "4-d", "nan", "text", "colour"],
)
def test_files_that_are_not_images_are_refused_by_name(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value)


def test_a_transparent_image_is_refused(tmp_path: Path, ramp: np.ndarray) -> None:
    Image.fromarray(np.stack([ramp] * 4, -1)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="transparent"):
        read_image(tmp_path / "a.png")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no images found \(the folder holds 1 other files\).*\.jpg"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="no such folder of images"):
        find_images(tmp_path / "absent")


def test_numbers_in_names_are_sorted_as_numbers(tmp_path: Path, ramp: np.ndarray) -> None:
    for name in ("10.png", "9.png", "b/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(ramp).save(tmp_path / name)
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == [
        "9.png",
        "10.png",
        "b/1.png",
        "b/2.png",
    ]


def test_boxes_are_read_and_wrong_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "7.jpg"
    assert read_boxes(path) == []
    (tmp_path / "7.txt").write_text("1 0.5 0.25 0.2 0.1\n\n0 0.1 0.1 0.1 0.1\n")
    assert read_boxes(path) == [Box(1, 0.5, 0.25, 0.2, 0.1), Box(0, 0.1, 0.1, 0.1, 0.1)]
    for text, message in (("1 0.5 0.5 0.1", "expected 'class"), ("0 0.5 0.5 0 0.1", "not inside"), ("a b", "expected 'class")):
        (tmp_path / "7.txt").write_text(text)
        with pytest.raises(InputError, match=message):
            read_boxes(path)


@pytest.mark.parametrize(
    ("shape", "matrix"), [((64, 48), (32, 24)), ((63, 48), (31, 24)), ((64, 64), (50, 37)), ((32, 32), (32, 32))]
)
def test_a_box_stays_on_its_object_when_kspace_is_cropped(shape: tuple[int, int], matrix: tuple[int, int]) -> None:
    box = Box(0, 0.4, 0.6, 0.3, 0.2)
    y, x = (np.arange(n) + 0.5 for n in shape)
    blob = np.exp(-0.5 * (((y[:, None] - box.y * shape[0]) / 4) ** 2 + ((x - box.x * shape[1]) / 4) ** 2))
    image = crop_to_matrix(torch.from_numpy(blob).float(), matrix).abs().double()
    y0, x0, y1, x1 = box_corners(box, shape, matrix)
    centre_y = float((image.sum(1) * (torch.arange(matrix[0]) + 0.5)).sum() / image.sum())
    centre_x = float((image.sum(0) * (torch.arange(matrix[1]) + 0.5)).sum() / image.sum())
    assert centre_y == pytest.approx((y0 + y1) / 2, abs=0.02)
    assert centre_x == pytest.approx((x0 + x1) / 2, abs=0.02)
    assert y1 - y0 == pytest.approx(0.2 * matrix[0])
    assert x1 - x0 == pytest.approx(0.3 * matrix[1])


def _numbered(*numbers: int) -> list[Path]:
    return [Path("root/t") / f"{number}.jpg" for number in numbers]


def test_a_group_is_a_run_of_consecutive_numbers() -> None:
    groups = group_files(_numbered(*range(1, 31), *range(100, 105)), Path("root"), 12)
    assert [[file_number(path) for path in group.files] for group in groups] == [
        list(range(1, 13)), list(range(13, 25)), list(range(25, 31)), list(range(100, 105)),
    ]  # fmt: skip
    assert len({group.name for group in groups}) == 4
    with pytest.raises(InputError, match="no number to group by"):
        group_files([Path("root/t/a.jpg")], Path("root"), 12)
    with pytest.raises(InputError, match="group size is 0"):
        group_files(_numbered(1), Path("root"), 0)


def test_too_many_images_for_one_scan_need_a_group_size() -> None:
    with pytest.raises(InputError, match=r"600 images in one folder.*--group-size"):
        group_files(_numbered(*range(600)), Path("root"))


@given(st.lists(st.integers(0, 3000), min_size=60, max_size=300, unique=True), st.integers(0, 30), st.integers(1, 15))
@settings(max_examples=50, deadline=None)
def test_the_split_never_shares_a_group_and_keeps_the_gap(numbers: list[int], gap: int, size: int) -> None:
    files = _numbered(*sorted(numbers))
    groups = group_files(files, Path("root"), size)
    train, val, left_out = split_groups(groups, 0.1, gap, by_number=True)
    of_train, of_val = ([path for group in side for path in group.files] for side in (train, val))
    assert sorted([*of_train, *of_val, *left_out]) == sorted(files)
    assert not {group.name for group in train} & {group.name for group in val}
    assert sorted(of_val, key=file_number) == files[len(files) - round(0.1 * len(files)) :]
    last_of_train = max(files.index(path) for path in of_train)
    assert last_of_train < len(files) - round(0.1 * len(files)) - gap


def test_the_split_of_the_tumour_set_is_the_documented_one(data_dir: Path) -> None:
    root = data_dir / "brain_t1c"
    files = find_images(root)
    train, val, left_out = split_groups(group_files(files, root, 12), 0.1, 20, by_number=True)
    assert (len(files), len(left_out)) == (2543, 60)
    for folder in ("glioma", "meningioma", "pituitary"):
        members = [path for path in files if path.parent.name == folder]
        held_out = [path for group in val for path in group.files if path.parent.name == folder]
        assert held_out == members[-round(len(members) / 10) :]
    assert all(file_number(group.files[-1]) - file_number(group.files[0]) < 12 for group in (*train, *val))


def test_patients_are_split_where_they_are_known(tmp_path: Path, ramp: np.ndarray) -> None:
    files = [Path(f"root/sub-{p:02d}_run-{r}.nii.gz") for p in range(5) for r in range(2)]
    groups = group_files(files, Path("root"))
    assert len(groups) == 10
    train, val, left_out = split_groups(groups, 0.2)
    assert {group.patient for group in val} == {"sub-04"}
    assert (len(train), len(val), left_out) == (8, 2, [])
    for i, (series, patient) in enumerate([("1.1", "Ann"), ("1.1", "Ann"), ("1.2", "Ann"), ("1.3", "Bob")]):
        _write_dicom(tmp_path / f"{i}.dcm", ramp, series=series, patient=patient)
    groups = group_files(find_images(tmp_path), tmp_path)
    assert [len(group.files) for group in groups] == [2, 1, 1]
    assert len({group.patient for group in groups}) == 2
    assert not any("Ann" in group.patient for group in groups)


def test_a_split_that_leaves_a_side_empty_is_refused() -> None:
    one = [PatientFiles("a", "a", (Path("a/1.png"),))]
    with pytest.raises(InputError, match="leaves 0 for training"):
        split_groups(one, 0.5)
    with pytest.raises(InputError, match="fraction for validation is 1"):
        split_groups(one, 1.0)
    with pytest.raises(InputError, match="a gap is a number of files"):
        split_groups(one, 0.5, gap=3)
