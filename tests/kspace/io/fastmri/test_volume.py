"""fastMRI-style files: what is read is what fastMRI reads, in our axes; what is written, fastMRI reads back."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from kspace.container import Geometry, Header, KSpace
from kspace.errors import InputError
from kspace.fourier import fft, ifft, resize
from kspace.io.fastmri import open_volume, write_reconstruction, write_volume
from kspace.io.fastmri.header import parse_header
from kspace.io.hdf5 import read_images

HEADER = """<?xml version="1.0"?>
<ismrmrdHeader {namespace}>
 <acquisitionSystemInformation><systemVendor>X</systemVendor><systemFieldStrength_T>2.89</systemFieldStrength_T>
 </acquisitionSystemInformation>
 <encoding>
  <encodedSpace><matrixSize><x>{n_kx}</x><y>{n_ky}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>280</x><y>180</y><z>4.5</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>{n_x}</x><y>{n_y}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>140</x><y>140</y><z>4.5</z></fieldOfView_mm></reconSpace>
  <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{maximum}</maximum><center>{centre}</center>
  </kspace_encoding_step_1></encodingLimits>
 </encoding>
 <sequenceParameters><TR>2200</TR><TE>10.5</TE><TE>21</TE></sequenceParameters>
</ismrmrdHeader>
"""


def header_xml(
    n_kx=40, n_ky=24, n_x=20, n_y=20, maximum=19, centre=10, namespace='xmlns="http://www.ismrm.org/ISMRMRD"'
) -> str:
    return HEADER.format(n_kx=n_kx, n_ky=n_ky, n_x=n_x, n_y=n_y, maximum=maximum, centre=centre, namespace=namespace)


@pytest.fixture
def knee(tmp_path: Path) -> Path:
    """A volume as fastMRI distributes knees: oversampled readout, a margin of lines that were never acquired, a cut target."""
    generator = np.random.default_rng(0)
    image = generator.standard_normal((2, 3, 40, 24)) + 1j * generator.standard_normal((2, 3, 40, 24))
    kspace = fastmri_fft(image)
    kspace[..., :2] = 0
    kspace[..., 22:] = 0
    rss = np.sqrt((np.abs(fastmri_ifft(kspace)) ** 2).sum(1))[:, 10:30, 2:22]
    return write_file(tmp_path / "knee.h5", kspace, rss, header_xml())


def fastmri_fft(x: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes), norm="ortho"), axes)


def fastmri_ifft(x: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(x, axes), norm="ortho"), axes)


def write_file(path: Path, kspace: np.ndarray, target: np.ndarray | None, header: str | None, **datasets: object) -> Path:
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        if target is not None:
            file["reconstruction_rss"] = target.astype(np.float32)
            file.attrs["max"] = target.max()
        if header is not None:
            file["ismrmrd_header"] = header
        for name, value in datasets.items():
            file[name] = value
        file.attrs.update({"patient_id": "p17", "acquisition": "CORPD_FBK"})
    return path


def test_a_volume_in_our_axes(knee: Path) -> None:
    volume = open_volume(knee)
    assert (volume.n_slices, volume.n_coils, volume.matrix, volume.recon_shape) == (2, 3, (24, 40), (20, 20))
    assert (volume.patient, volume.attributes["acquisition"]) == ("p17", "CORPD_FBK")
    k = volume.load(1)
    with h5py.File(knee, "r") as file:
        stored, target = file["kspace"][1], file["reconstruction_rss"][1]
    np.testing.assert_array_equal(k.data.numpy(), stored.transpose(0, 2, 1))
    np.testing.assert_array_equal(volume.target(1).numpy(), target.T)
    # The point of the format: the root sum of squares of what was loaded, cut, is the distributed target.
    rss = resize(ifft(k.data).abs().square().sum(0).sqrt(), volume.recon_shape)
    torch.testing.assert_close(rss, volume.target(1), rtol=1e-5, atol=1e-6)


def test_slices_without_positions_are_one_stack(knee: Path) -> None:
    geometry = [open_volume(knee).load(i).header.geometry for i in range(2)]
    assert [g.position_m for g in geometry] == [(0.0, 0.0, pytest.approx(-0.0045)), (0.0, 0.0, 0.0)]
    assert all(g.nominal for g in geometry)


def test_the_margin_was_not_sampled(knee: Path) -> None:
    from fastmri.data import SliceDataset

    metadata = SliceDataset(root=knee.parent, challenge="multicoil").raw_samples[0].metadata
    volume = open_volume(knee)
    assert volume.acquired == (metadata["padding_left"], metadata["padding_right"]) == (2, 22)
    mask = volume.load(0).mask
    assert mask.shape == (1, 24, 1)
    assert mask.flatten().nonzero().flatten().tolist() == list(range(2, 22))


def test_what_the_header_says(knee: Path) -> None:
    header = open_volume(knee).load(1).header
    assert header.encoded_matrix == (40, 24, 1)
    assert header.recon_matrix == (20, 20, 1)
    assert header.encoded_fov_m == pytest.approx((0.28, 0.18, 0.0045))
    # Twenty of the 24 points of 180 mm: the image is a cut of the encoded one.
    assert header.recon_fov_m == pytest.approx((0.14, 0.15, 0.0045))
    assert header.geometry.nominal
    assert header.index.slice == 1
    assert header.study == {
        "systemVendor": "X",
        "systemFieldStrength_T": 2.89,
        "TR": (2200.0,),
        "TE": (10.5, 21.0),
    }


@pytest.mark.parametrize("namespace", ["", 'xmlns="http://other"', 'xmlns:q="http://www.ismrm.org/ISMRMRD"'])
def test_namespaces_do_not_matter(namespace: str) -> None:
    assert parse_header(header_xml(namespace=namespace), "f").encoded_matrix == (40, 24, 1)


def test_limits_beyond_the_matrix_are_kept_inside() -> None:
    # fastMRI would count a negative left end from the right.
    assert parse_header(header_xml(centre=14, maximum=30), "f").acquired_range(24) == (0, 24)
    assert parse_header(header_xml().replace("center>", "middle>"), "f").acquired_range(24) == (0, 24)


def test_a_single_coil_volume_gets_a_coil_axis(tmp_path: Path) -> None:
    kspace = np.random.default_rng(0).standard_normal((2, 40, 24)) + 0j
    path = write_file(tmp_path / "s.h5", kspace, None, header_xml(), reconstruction_esc=np.ones((2, 20, 20), np.float32))
    with h5py.File(path, "a") as file:
        file["reconstruction_rss"] = np.zeros((2, 20, 20), np.float32)
    volume = open_volume(path)
    assert (volume.single_coil, volume.n_coils, volume.target_name) == (True, 1, "reconstruction_esc")
    np.testing.assert_array_equal(volume.load(0).data[0, 2:22].numpy(), kspace[0].T[2:22].astype(np.complex64))


@pytest.mark.parametrize("lines", [True, False])
def test_the_mask_of_a_test_file(tmp_path: Path, lines: bool) -> None:
    mask = np.random.default_rng(1).random((24,) if lines else (40, 24)) < 0.4
    volume = open_volume(
        write_file(tmp_path / "t.h5", np.ones((1, 2, 40, 24)), None, header_xml(), mask=mask.astype(np.float32))
    )
    inside = np.arange(24) // 2 % 11 != 0  # 2 to 21
    k = volume.load(0)
    expected = np.broadcast_to(mask & inside, (40, 24)).T
    np.testing.assert_array_equal(k.mask[0].expand(24, 40).numpy(), expected)
    np.testing.assert_array_equal((k.data[0] != 0).numpy(), expected)
    assert volume.target(0) is None


def test_a_volume_narrower_than_its_recon_matrix(tmp_path: Path) -> None:
    volume = open_volume(
        write_file(tmp_path / "f.h5", np.ones((1, 1, 40, 16)), None, header_xml(n_ky=16, maximum=15, centre=8))
    )
    assert volume.recon_shape == (16, 20)


def test_real_files(data_dir: Path) -> None:
    for path in sorted((data_dir / "fastmri_style").glob("*.h5")):
        before = hashlib.sha256(path.read_bytes()).hexdigest()
        volume = open_volume(path)
        for index in range(0, volume.n_slices, 3):
            target = volume.target(index)
            rss = resize(ifft(volume.load(index).data).abs().square().sum(0).sqrt(), volume.recon_shape)
            assert (rss - target).norm() < 1e-6 * target.norm()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def slices(n: int = 2, mask: torch.Tensor | None = None) -> list[KSpace]:
    header = Header(
        source="x",
        encoded_matrix=(12, 10, 1),
        recon_matrix=(8, 10, 1),
        encoded_fov_m=(0.3, 0.25, 0.005),
        recon_fov_m=(0.2, 0.25, 0.005),
        study={"systemFieldStrength_T": 1.5, "TE": (10.0,), "protocolName": "a < b"},
    )
    mask = torch.ones(1, 10, 1, dtype=torch.bool) if mask is None else mask
    found = []
    for i in range(n):
        geometry = Geometry(position_m=(0.0, 0.01, 0.005 * i), read_dir=(0.0, 1.0, 0.0), phase_dir=(1.0, 0.0, 0.0))
        data = torch.randn(3, 10, 12, dtype=torch.complex64) * mask
        found.append(KSpace(data, mask, replace(header, geometry=replace(geometry, fov_m=header.recon_fov_m))))
    return found


def test_written_volumes_come_back(tmp_path: Path) -> None:
    written = slices()
    covariance = torch.tensor([[2, 1j, 0], [-1j, 3, 0], [0, 0, 1]], dtype=torch.complex64)
    path = write_volume(
        tmp_path / "v.h5",
        iter(written),
        patient_id="p",
        acquisition="AXT2",
        noise_covariance=covariance,
        boxes=[(1, 2, 3, 4, 5, 6)],
        attributes={"snr": 20.0},
    )
    volume = open_volume(path)
    assert volume.attributes["snr"] == 20.0
    assert torch.equal(volume.noise_covariance, covariance)
    assert volume.boxes_of(0).shape == (0, 5)
    assert volume.boxes_of(1).tolist() == [[2, 3, 4, 5, 6]]
    for index, k in enumerate(written):
        loaded = volume.load(index)
        assert torch.equal(loaded.data, k.data)
        assert torch.equal(loaded.mask, k.mask)
        assert loaded.header.geometry.fov_m == pytest.approx(k.header.geometry.fov_m)
        assert replace(loaded.header.geometry, fov_m=(0, 0, 0)) == replace(k.header.geometry, fov_m=(0, 0, 0))
        assert loaded.header.recon_matrix == k.header.recon_matrix
        assert loaded.header.study.items() >= k.header.study.items()
    rss = torch.stack([volume.target(i) for i in range(2)])
    assert rss.shape == (2, 10, 8)
    assert volume.max == pytest.approx(float(rss.max()))
    assert volume.attributes["norm"] == pytest.approx(float(rss.norm()))


def test_fastmri_reads_what_is_written(tmp_path: Path) -> None:
    from fastmri.data import SliceDataset

    written = slices()
    write_volume(tmp_path / "v.h5", written, patient_id="p", acquisition="AXT2")
    kspace, mask, target, attributes, name, index = SliceDataset(root=tmp_path, challenge="multicoil")[1]
    np.testing.assert_array_equal(kspace, written[1].data.mT.numpy())
    assert mask is None
    expected = np.sqrt((np.abs(fastmri_ifft(kspace)) ** 2).sum(0))[2:10]
    np.testing.assert_allclose(target, expected, rtol=1e-5)
    assert (attributes["encoding_size"], attributes["recon_size"]) == ((12, 10, 1), (8, 10, 1))
    assert (attributes["padding_left"], attributes["padding_right"], name, index) == (0, 10, "v.h5", 1)


@pytest.mark.parametrize("shape", [(1, 10, 1), (1, 10, 12)])
def test_undersampled_volumes_keep_mask_averages_and_calibration(tmp_path: Path, shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) < 0.5
    n_averages = mask * torch.arange(1, 11).reshape(1, 10, 1)
    written = [replace(k, n_averages=n_averages, calibration=k.data + 1) for k in slices(2, mask)]
    written = [k.after("average", header={"noise_std": 0.5}) for k in written]
    volume = open_volume(write_volume(tmp_path / "u.h5", written))
    loaded = volume.load(1)
    assert volume.target_name is None
    with h5py.File(volume.path, "r") as file:
        assert file["mask"].shape == ((10,) if shape[-1] == 1 else (12, 10))
    for name in ("data", "mask", "n_averages", "calibration"):
        assert torch.equal(getattr(loaded, name), getattr(written[1], name)), name
    assert (loaded.header.steps, loaded.header.noise_std) == (("average",), 0.5)


def test_submission_layout(tmp_path: Path) -> None:
    image = torch.randn(2, 6, 8, dtype=torch.complex64)
    path = write_reconstruction(tmp_path / "r.h5", list(image), attributes={"method": "sense"})
    with h5py.File(path, "r") as file:
        stored = file["reconstruction"]
        assert (stored.shape, stored.dtype) == ((2, 8, 6), np.float32)
        np.testing.assert_array_equal(stored[()], image.abs().numpy().transpose(0, 2, 1))
    name, images = read_images(path, ("reconstruction_rss", "reconstruction"))
    assert name == "reconstruction"
    np.testing.assert_array_equal(images, image.abs().numpy())


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> object:
        yield slices()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_volume(tmp_path / "v.h5", broken())
    assert list(tmp_path.iterdir()) == []
    write_volume(tmp_path / "v.h5", slices(1))
    with pytest.raises(InputError, match="the file exists"):
        write_volume(tmp_path / "v.h5", slices())
    write_volume(tmp_path / "v.h5", slices(), force=True)
    assert open_volume(tmp_path / "v.h5").n_slices == 2
    with pytest.raises(InputError, match="cannot write"):
        write_volume(tmp_path / "no" / "v.h5", slices())
    with pytest.raises(InputError, match="no slices"):
        write_volume(tmp_path / "w.h5", [])
    first, second = slices()
    with pytest.raises(InputError, match="slice 1 differs"):
        write_volume(tmp_path / "w.h5", [first, replace(second, data=second.data[:2])])
    assert [p.name for p in tmp_path.iterdir()] == ["v.h5"]


def damage(name: str, file: h5py.File) -> None:
    if name == "no kspace":
        del file["kspace"]
    elif name == "ismrmrd":
        del file["kspace"]
        file.create_group("dataset")
    elif name in ("real kspace", "flat kspace", "empty kspace", "wide kspace", "huge kspace"):
        del file["kspace"]
        shape = {"flat": (4, 4), "empty": (0, 3, 40, 24), "wide": (2, 3, 40, 26), "huge": (1, 99999, 99999, 24)}
        dtype = np.float32 if name == "real kspace" else np.complex64
        file.create_dataset("kspace", shape.get(name.split()[0], (2, 3, 40, 24)), dtype, chunks=name == "huge kspace" or None)
    elif name == "mask width":
        file["mask"] = np.ones(25)
    elif name == "mask values":
        file["mask"] = np.full(24, 0.5)
    elif name == "mask empty":
        file["mask"] = np.zeros(24)
    elif name == "target slices":
        del file["reconstruction_rss"]
        file["reconstruction_rss"] = np.zeros((3, 20, 20))
    elif name == "target size":
        del file["reconstruction_rss"]
        file["reconstruction_rss"] = np.zeros((2, 20, 30))
    else:
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = {
            "not xml": "hello",
            "truncated xml": header_xml()[:400],
            "doctype": '<!DOCTYPE a [<!ENTITY b "c">]><ismrmrdHeader>&b;</ismrmrdHeader>',
            "other xml": "<html/>",
            "zero matrix": header_xml(n_kx=0),
            "matrix text": header_xml(n_kx="many"),
            "vast matrix": header_xml(n_kx=10**10),
            "no line left": header_xml(maximum=0, centre=0).replace("<maximum>0<", "<maximum>30<").replace(">0</c", ">60</c"),
            "number header": 3.5,
        }[name]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "no kspace",
            "no data set 'kspace' .found: ismrmrd_header, reconstruction_rss.: not a fastMRI-style file",
        ),
        ("ismrmrd", "this is an ISMRMRD file.*recon convert"),
        ("real kspace", "kspace is float32, expected complex"),
        ("flat kspace", r"kspace has shape \(4, 4\), expected"),
        ("empty kspace", "kspace is empty"),
        ("wide kspace", "kspace is 40 x 26 .readout x phase., the header's encoded matrix 40 x 24"),
        ("huge kspace", "is larger than"),
        ("mask width", r"the mask has shape \(25,\), kspace has 24 lines of 40 samples"),
        ("mask values", "values other than 0 and 1"),
        ("mask empty", "the mask is empty"),
        ("target slices", r"reconstruction_rss has shape \(3, 20, 20\)"),
        ("target size", "reconstruction_rss is larger"),
        ("not xml", "the XML header is truncated or not XML"),
        ("truncated xml", "the XML header is truncated or not XML"),
        ("doctype", "declares a DOCTYPE or entities"),
        ("other xml", "expected <ismrmrdHeader>"),
        ("zero matrix", "encodedSpace of encoding 0 has the matrix 0 x 24 x 1"),
        ("matrix text", "<x> of the XML header is 'many'"),
        ("vast matrix", "expected 1 to 65536 points per axis"),
        ("no line left", "leave no line of 24"),
        ("number header", "the ismrmrd_header is not text"),
    ],
)
def test_files_that_cannot_be_used(knee: Path, name: str, match: str) -> None:
    with h5py.File(knee, "a") as file:
        damage(name, file)
    with pytest.raises(InputError, match=match):
        open_volume(knee)


def test_files_that_are_not_hdf5(tmp_path: Path, knee: Path) -> None:
    (tmp_path / "empty.h5").touch()
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "cut.h5").write_bytes(knee.read_bytes()[:-1000])
    for name, match in [
        ("absent.h5", "no such file"),
        (".", "this is a folder"),
        ("empty.h5", "the file is empty"),
        ("text.h5", "not an HDF5 file"),
        ("cut.h5", "the HDF5 file is truncated"),
    ]:
        with pytest.raises(InputError, match=match):
            open_volume(tmp_path / name)
    assert not (tmp_path / "absent.h5").exists()


def test_samples_that_are_not_finite(knee: Path) -> None:
    with h5py.File(knee, "a") as file:
        file["kspace"][1, 0, 3, 4] = np.nan
    volume = open_volume(knee)
    volume.load(0)
    with pytest.raises(InputError, match="slice 1 of kspace holds NaN"):
        volume.load(1)
    with pytest.raises(InputError, match=r"there is no slice 2.*slices 0 to 1"):
        volume.load(2)


def test_large_samples_are_not_mistaken_for_infinite(knee: Path) -> None:
    with h5py.File(knee, "a") as file:
        file["kspace"][...] = 3e38
    assert open_volume(knee).load(0).data.real.max() == pytest.approx(3e38)


@pytest.mark.slow
def test_damaged_bytes_end_in_an_error_or_a_volume(knee: Path, tmp_path: Path) -> None:
    content = bytearray(knee.read_bytes())
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged.h5"
    for _ in range(300):
        damaged = bytearray(content)
        for position in generator.integers(0, 4096, 4):
            damaged[position] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            volume = open_volume(path)
            volume.load(0)
            volume.target(0)
        except InputError:
            pass


def test_volumes_can_be_sent_to_other_processes(knee: Path) -> None:
    volume = pickle.loads(pickle.dumps(open_volume(knee)))  # noqa: S301 - what the data loader does
    assert torch.equal(volume.load(0).data, open_volume(knee).load(0).data)


def test_the_fourier_pair_is_fastmris() -> None:
    from fastmri import ifft2c

    y = torch.randn(3, 7, 8, dtype=torch.complex64)
    torch.testing.assert_close(torch.view_as_complex(ifft2c(torch.view_as_real(y))), ifft(y))
    torch.testing.assert_close(fft(ifft(y)), y)
