"""Folders of images become volumes that a reader of fastMRI's format takes for scans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from kspace.errors import InputError
from kspace.fourier import ifft
from kspace.io import fastmri
from kspace.io.images import read_image
from kspace.masks import MaskSpec
from kspace.simulation.acquisition import ScanProtocol, accelerate, add_noise_scan, cartesian, coil_covariance
from kspace.simulation.from_images import crop_to_matrix
from kspace.simulation.measurement import write_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils
from recon.batch.jobs import DeadJob, Job
from recon.batch.options import ClusterOptions
from recon.commands.simulate import simulate
from recon.compare.cases import find_data, make_case
from recon.datasets.augment import Augment
from recon.datasets.kspace_dataset import KSpaceDataset, find_volumes
from recon.datasets.simulated import measure_receiver
from tests.conftest import ROOT
from tests.support.clusters import running_cluster

MATRIX = (32, 24)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two folders of ten pictures each, with a box in each, bright where the box is."""
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(1, 11):
            y, x = np.mgrid[:64, :48]
            picture = 60.0 * ((y - 32) ** 2 / 28**2 + (x - 24) ** 2 / 20**2 < 1)
            cy, cx = rng.integers(20, 44), rng.integers(16, 32)
            picture += 150 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 18)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
            text = f"2 {(cx + 0.5) / 48} {(cy + 0.5) / 64} {12 / 48} {12 / 64}\n"
            (folder / name / f"{number}.txt").write_text(text)
    return folder


def test_the_truth_is_the_picture_whatever_the_noise(images: Path, tmp_path: Path) -> None:
    simulate(images / "a", tmp_path / "out", matrix=MATRIX, coils=3, snr=5, smooth=True)
    (volume,) = _volumes(tmp_path / "out").values()
    (found,), _ = find_data([str(volume.path)])
    for i in range(2):
        truth = volume.truth(i)
        assert truth is not None
        picture = crop_to_matrix(torch.from_numpy(read_image(images / "a" / f"{1 + i}.png")[0]), MATRIX).abs()
        assert torch.allclose(truth / truth.max(), picture / picture.max(), atol=1e-5)
        # In units of the noise: what methods are compared on is whitened.
        noise = np.linalg.norm(ifft(found.plane(i).data).numpy(), axis=0) - truth.numpy()
        assert float(np.abs(noise).mean()) < 2
        case = make_case(found, i, MaskSpec.parse("random1d:2"))
        assert np.array_equal(case.truth, truth.numpy())


@pytest.mark.parametrize("wrong", [np.zeros((9, 24, 32), np.float32), np.zeros((10, 24, 32), np.int32), np.float32(3)])
def test_a_truth_that_does_not_fit_is_refused(images: Path, tmp_path: Path, wrong: np.ndarray) -> None:
    simulate(images / "a", tmp_path / "out", matrix=MATRIX, coils=3)
    (path,) = (tmp_path / "out").glob("*.h5")
    with h5py.File(path, "a") as file:
        del file["truth"]
        file["truth"] = wrong
    with pytest.raises(InputError, match=r"truth is .* expected real numbers of shape \(10, 24, 32\)"):
        fastmri.open_volume(path)


@pytest.mark.parametrize("missing", ["simulated", "noise_covariance"])
def test_what_others_call_truth_is_passed_over(images: Path, tmp_path: Path, missing: str) -> None:
    simulate(images / "a", tmp_path / "out", matrix=MATRIX, coils=3)
    (path,) = (tmp_path / "out").glob("*.h5")
    with h5py.File(path, "a") as file:
        del (file.attrs if missing == "simulated" else file)[missing]
        del file["truth"]
        file["truth"] = "a label"
    volume = fastmri.open_volume(path)
    assert volume.truth(0) is None
    (found,), _ = find_data([str(path)])
    case = make_case(found, 0, MaskSpec.parse("random1d:2"))
    assert np.allclose(case.truth, np.linalg.norm(ifft(found.plane(0).data).numpy(), axis=0), rtol=1e-4)


def test_a_truth_that_is_no_number_is_refused(images: Path, tmp_path: Path) -> None:
    simulate(images / "a", tmp_path / "out", matrix=MATRIX, coils=3)
    (volume,) = _volumes(tmp_path / "out").values()
    with h5py.File(volume.path, "a") as file:
        file["truth"][3, 5, 7] = np.nan
    assert volume.truth(2) is not None
    with pytest.raises(InputError, match="slice 3 of truth holds NaN"):
        volume.truth(3)


def _volumes(folder: Path) -> dict[str, fastmri.FastmriVolume]:
    return {path.relative_to(folder).as_posix(): fastmri.open_volume(path) for path in sorted(folder.rglob("*.h5"))}


def test_volumes_are_groups_and_show_the_pictures(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(
        images, tmp_path / "out", matrix=MATRIX, coils=3, snr=1000, group_size=5, attribution="A. Nyone, CC BY", smooth=True
    )
    volumes = _volumes(tmp_path / "out")
    assert {volume.attributes["attribution"] for volume in volumes.values()} == {"A. Nyone, CC BY"}
    assert list(volumes) == ["a_01.h5", "a_06.h5", "b_01.h5", "b_06.h5"]
    assert "20 slices" in capsys.readouterr().out
    volume = volumes["b_06.h5"]
    assert (volume.n_slices, volume.n_coils, volume.matrix) == (5, 3, MATRIX)
    assert volume.attributes["simulated"]
    assert volume.attributes["images"].splitlines() == [f"b/{n}.png" for n in range(6, 11)]
    assert volume.patient == "b_06"
    assert volume.load(0).header.geometry.nominal
    covariance = volume.noise_covariance
    assert covariance is not None
    inverse = torch.linalg.inv(covariance)
    for i in range(5):
        # Row 0 is the top of the image, and the optimally combined magnitude equals the image.
        picture = torch.from_numpy(read_image(images / "b" / f"{6 + i}.png")[0])
        expected = crop_to_matrix(picture, MATRIX).abs()
        y = ifft(volume.load(i).data)
        combined = torch.einsum("iyx,ij,jyx->yx", y.conj(), inverse, y).real.clamp_min(0).sqrt()
        combined = combined * (expected * combined).sum() / combined.square().sum()
        assert float((combined - expected).abs().max()) < 0.02 * float(expected.max())
        (box,) = volume.boxes_of(i)
        label, y0, x0, y1, x1 = box.tolist()
        assert label == 2
        assert (y1 - y0, x1 - x0) == pytest.approx((6, 6), abs=1e-3)
        peak = divmod(int(expected.argmax()), MATRIX[1])
        assert (y0 + y1) / 2 == pytest.approx(peak[0] + 0.5, abs=1)
        assert (x0 + x1) / 2 == pytest.approx(peak[1] + 0.5, abs=1)


def test_splits_follow_the_group_rule(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(images, tmp_path / "out", matrix=MATRIX, coils=2, group_size=4, split=0.2, gap=1)
    found = {name: volume.attributes["images"].splitlines() for name, volume in _volumes(tmp_path / "out").items()}
    assert found["val/a_09.h5"] == ["a/9.png", "a/10.png"]
    assert found["train/a_05.h5"] == ["a/5.png", "a/6.png", "a/7.png"]
    assert sum(len(names) for names in found.values()) == 18
    assert "2 images between training and validation were left out" in capsys.readouterr().out


def test_what_is_written_depends_on_pictures_options_and_seed_alone(images: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        torch.manual_seed(len(name))
        simulate(images, tmp_path / name, matrix=MATRIX, coils=2, snr=10, snr_max=30, seed=seed)
    one, two, three = (fastmri.open_volume(tmp_path / name / "b.h5").load(4).data for name in ("one", "two", "three"))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    (images / "a" / "3.png").unlink()
    simulate(images, tmp_path / "four", matrix=MATRIX, coils=2, snr=10, snr_max=30, seed=0)
    four = fastmri.open_volume(tmp_path / "four" / "b.h5").load(4).data
    assert torch.equal(one, four)  # what happens to one patient is nothing to another
    assert fastmri.open_volume(tmp_path / "four" / "a.h5").n_slices == 9


def test_bad_images_are_named_and_skipped_only_if_asked(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a" / "4.png").write_bytes((images / "a" / "4.png").read_bytes()[:60])
    (images / "b" / "2.txt").write_text("nonsense")
    Image.new("L", (16, 16), 9).save(images / "b" / "7.png")
    with pytest.raises(InputError, match=r"a/4\.png: cannot read the image.*--skip-bad"):
        simulate(images, tmp_path / "out", matrix=MATRIX, coils=2)
    simulate(images, tmp_path / "out", matrix=MATRIX, coils=2, skip_bad=True, force=True)
    said = capsys.readouterr()
    for name in ("a/4.png", "b/2.txt", "b/7.png"):
        assert name in said.err
    assert "fewer than the matrix 32 x 24" in said.err
    assert "3 bad images were skipped" in said.out
    volumes = _volumes(tmp_path / "out")
    assert [volume.n_slices for volume in volumes.values()] == [9, 8]
    assert [row[0] for row in volumes["b.h5"].boxes] == list(range(8))  # numbered without the skipped ones


def test_a_folder_of_bad_images_is_an_error_after_all(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"x")
    Image.new("L", (48, 64)).save(tmp_path / "images" / "2.png")
    with pytest.raises(InputError, match=r"none of the images could be used; the first: .*1\.png"):
        simulate(tmp_path / "images", tmp_path / "out", matrix=MATRIX, skip_bad=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        simulate(tmp_path / "empty", tmp_path / "out")


def test_existing_volumes_are_kept_and_nothing_is_begun(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.h5").write_text("precious")
    with pytest.raises(InputError, match=r"1 of the volumes exist.*--force"):
        simulate(images, tmp_path / "out", matrix=MATRIX)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.h5"]
    with pytest.raises(InputError, match="a gap of 3 files without a split"):
        simulate(images, tmp_path / "out", matrix=MATRIX, gap=3, force=True)


def test_realistic_volumes_have_matrices_of_their_own_and_boxes_that_follow(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    y, x = np.mgrid[:256, :280]
    for patient in ("a", "b", "c", "d"):
        (folder / patient).mkdir(parents=True)
        for number in (1, 2):
            picture = 90.0 * ((y - 128) ** 2 / 90**2 + (x - 140) ** 2 / 80**2 < 1) + 9 * number * (y > 110)
            picture[90:110, 150:190] = 250
            Image.fromarray(picture.astype(np.uint8)).save(folder / patient / f"{number}.png")
            (folder / patient / f"{number}.txt").write_text(f"1 {170 / 280} {100 / 256} {40 / 280} {20 / 256}")
    simulate(folder, tmp_path / "out", coils=2)
    simulate(folder, tmp_path / "again", coils=2)
    volumes, again = _volumes(tmp_path / "out"), _volumes(tmp_path / "again")
    assert len({volume.matrix for volume in volumes.values()}) > 1
    assert all(96 <= n <= 208 for volume in volumes.values() for n in volume.matrix)
    assert len({volume.attributes["snr"] for volume in volumes.values()}) == 4
    for name, volume in volumes.items():
        assert torch.equal(volume.load(1).data, again[name].load(1).data)
        truth, (box,) = volume.truth(0), volume.boxes_of(0)
        assert truth is not None
        y0, x0, y1, x1 = (round(v) for v in box[1:].tolist())
        inside = truth[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
        # One intensity, whatever the contrast has become; around it there is another.
        around = truth[max(0, y0 - 4) : y1 + 4, max(0, x0 - 4) : x1 + 4]
        assert float(inside.std() / inside.mean()) < 0.5 * float(around.std() / around.mean())


def test_a_check_puts_scans_beside_the_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    y, x = np.mgrid[:160, :160]
    for number in range(3):
        picture = (
            120.0 * ((y - 80) ** 2 / 60**2 + (x - 80) ** 2 / 50**2 < 1) * (1 + 0.5 * np.sin(x / (4 + number)) * np.cos(y / 7))
        )
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
    simulate(folder, tmp_path / "scans", matrix=(96, 80), coils=3, smooth=True)
    (scan,) = (tmp_path / "scans").glob("*.h5")
    simulate(folder, tmp_path / "out", matrix=(96, 80), check=(scan,), examples=6)
    found = json.loads((tmp_path / "out" / "check.json").read_text())
    assert len(found["simulated"]) == 6
    assert set(found["scans"]) == {f"{scan.stem}/0", f"{scan.stem}/2"}
    low, high = found["ranges"]["phase/residual_8"]
    values = sorted(row["phase/residual_8"] for row in found["simulated"])
    assert values[0] <= low <= values[1]
    assert values[-2] <= high <= values[-1]
    real = found["scans"][f"{scan.stem}/0"]
    assert 5 < real["noise/snr"] < 40, "20, as simulated"
    assert "phase/residual_8" in (tmp_path / "out" / "check.md").read_text()
    assert (tmp_path / "out" / "check.png").stat().st_size > 10_000
    assert "of scans lie outside" in capsys.readouterr().out
    with pytest.raises(InputError, match="the output exists"):
        simulate(folder, tmp_path / "out", check=(scan,))


def test_every_format_becomes_a_volume(tmp_path: Path) -> None:
    import nibabel

    folder = tmp_path / "images"
    folder.mkdir()
    stack = np.random.default_rng(0).random((3, 40, 30)).astype(np.float32)
    np.save(folder / "x.npy", stack)
    nibabel.Nifti1Image(stack.T, np.diag([-1.0, -1, 1, 1])).to_filename(folder / "sub-1.nii.gz")
    Image.fromarray(stack[0]).save(folder / "y.tif")
    simulate(folder, tmp_path / "out", matrix=(20, 20), coils=2, snr=500, smooth=True)
    assert {name: volume.n_slices for name, volume in _volumes(tmp_path / "out").items()} == {
        "images.h5": 1, "images_sub-1.h5": 3, "images_x.h5": 3,
    }  # fmt: skip
    nifti, array = (fastmri.open_volume(tmp_path / "out" / f"images_{name}.h5") for name in ("sub-1", "x"))
    assert nifti.patient == "sub-1"
    for i in range(3):
        magnitude, other = nifti.target(i), array.target(i)
        assert magnitude is not None
        assert other is not None
        # Different coils, so different shading, of the same picture.
        assert float(torch.corrcoef(torch.stack([magnitude.flatten(), other.flatten()]))[0, 1]) > 0.8


def test_coils_measured_from_a_scan_are_used(images: Path, tmp_path: Path) -> None:
    phantom = Phantom((ellipsoid((0.0, 0.0, 0.0), (0.09, 0.1, 0.09)),))
    protocol = ScanProtocol(matrix=(48, 48, 1), fov_m=(0.24, 0.24, 0.005), n_slices=1)
    scan = add_noise_scan(cartesian(protocol, phantom, head_coils(6), coil_covariance(6, 1e-9)))
    write_scan(accelerate(scan, 2, calibration=24), tmp_path / "scan.h5")
    maps, covariance = measure_receiver(tmp_path / "scan.h5")
    x = (np.arange(64) - 32) * 0.24 / 64
    truth = torch.from_numpy(head_coils(6).maps(x[None, :], x[:, None], np.zeros((1, 1)))).to(torch.complex64)
    cosine = (maps.conj() * truth).sum(0).abs() / (
        torch.linalg.vector_norm(maps, dim=0) * torch.linalg.vector_norm(truth, dim=0)
    )
    inside = torch.from_numpy((x[None, :] / 0.08) ** 2 + (x[:, None] / 0.09) ** 2 < 1)
    assert float(cosine[inside].min()) > 0.98
    assert covariance is not None
    simulate(images, tmp_path / "out", matrix=MATRIX, coils=3, maps_from=tmp_path / "scan.h5")
    volume = fastmri.open_volume(tmp_path / "out" / "a.h5")
    assert volume.n_coils == 6
    measured = volume.noise_covariance
    assert measured is not None
    ratio = measured.to(torch.complex128) / covariance
    torch.testing.assert_close(ratio.abs(), torch.full_like(ratio.abs(), float(ratio[0, 0].abs())), rtol=1e-3, atol=0)


def test_training_examples_come_out_of_it(images: Path, tmp_path: Path) -> None:
    simulate(images, tmp_path / "out", matrix=MATRIX, coils=4, snr=50, smooth=True)
    files = find_volumes(tmp_path / "out")
    plain, augmented = KSpaceDataset(files), KSpaceDataset(files, augment=Augment(), seed=3)
    example = plain[0]
    assert example.op.noise_std == 1.0  # whitened by the covariance in the file
    assert example.target is not None
    assert len(example.boxes[0]) == 1
    changed, again, next_epoch = augmented[0, 0], augmented[0, 0], augmented[0, 1]
    assert changed.y.shape == example.y.shape
    assert torch.equal(changed.y, again.y)
    assert not torch.equal(changed.y, next_epoch.y)
    for number in range(4):
        one = augmented[number, 0]
        assert one.target is not None
        (box,) = one.boxes[0]
        peak = divmod(int(one.target.abs().argmax()), MATRIX[1])
        assert box[1] - 1 <= peak[0] + 0.5 <= box[3] + 1  # the box is still where the image is brightest
        assert box[2] - 1 <= peak[1] + 0.5 <= box[4] + 1


def test_whitened_espirit_maps_explain_the_data(images: Path, tmp_path: Path) -> None:
    """The noise that the file announces is what is left over when its own maps are fitted to the data."""
    simulate(images, tmp_path / "out", matrix=(48, 48), coils=4, snr=30)
    example = KSpaceDataset([tmp_path / "out" / "a.h5"])[3]
    assert example.target is not None
    residual = example.y - example.op.forward(example.target)
    freedoms = 1 - 1 / 4  # one unknown per pixel, four samples
    assert float(residual.abs().square().mean()) == pytest.approx(freedoms, rel=0.15)


def test_the_command_line(images: Path, tmp_path: Path) -> None:
    from recon.cli import execute

    argv = ["simulate", str(images), str(tmp_path / "out"), "--matrix", "32", "24", "--coils", "2", "--group-size", "5"]
    assert execute([*argv, "--split", "0.2", "--gap", "2"]) == 0
    assert execute(argv[:3]) == 2  # smaller than the default matrix
    with h5py.File(tmp_path / "out" / "train" / "a_01.h5", "r") as file:
        assert file["kspace"].shape == (5, 2, 24, 32)


def assert_same_volume(one: Path, other: Path) -> None:
    """Equal but for the last bits: transforms round as the memory of a process is aligned."""
    with h5py.File(one) as a, h5py.File(other) as b:
        assert dict(a.attrs).keys() == dict(b.attrs).keys()
        assert a.keys() == b.keys()
        for name in a:
            x, y = a[name][()], b[name][()]
            if isinstance(x, np.ndarray):
                np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(x).max(), err_msg=name)
            else:
                assert x == y


def test_workers_write_the_same_volumes(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "b" / "3.png").write_bytes(b"no picture")
    options: dict[str, Any] = {"matrix": MATRIX, "coils": 3, "group_size": 5, "split": 0.5, "seed": 3, "skip_bad": True}
    with running_cluster(tmp_path) as file:
        cluster = ClusterOptions(scheduler=str(file))
        simulate(images, tmp_path / "here", **options)
        here = capsys.readouterr()
        simulate(images, tmp_path / "there", **options, cluster=cluster)
        there = capsys.readouterr()
        assert here.out == there.out
        assert [line for line in here.err.splitlines() if "skipped" in line] == [
            line for line in there.err.splitlines() if "skipped" in line
        ]
        written = sorted(p.relative_to(tmp_path / "here") for p in (tmp_path / "here").rglob("*.h5"))
        assert len(written) == 4
        assert written == sorted(p.relative_to(tmp_path / "there") for p in (tmp_path / "there").rglob("*.h5"))
        for path in written:
            assert_same_volume(tmp_path / "here" / path, tmp_path / "there" / path)

        with pytest.raises(InputError, match=r"3.png: .*") as stopped:
            simulate(images, tmp_path / "strict", **{**options, "skip_bad": False}, cluster=cluster)
        assert stopped.value.where == images / "b" / "3.png"


class Deadly:
    """Workers that die with the volume ``b``."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Deadly:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def each(self, function: Callable[..., Any], jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        for job in jobs:
            yield job, DeadJob(2) if job.name == "b" else function(**job.arguments)


def test_a_volume_that_kills_its_workers_is_an_error_or_skipped(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recon.commands.simulate.JobWorkers", Deadly)
    cluster = ClusterOptions(scheduler="local:2")
    with pytest.raises(InputError, match=r"b\.h5: its worker process died in 2 attempts .*; give the workers more memory"):
        simulate(images, tmp_path / "strict", matrix=MATRIX, coils=3, cluster=cluster)
    simulate(images, tmp_path / "skip", matrix=MATRIX, coils=3, skip_bad=True, cluster=cluster)
    assert [path.name for path in (tmp_path / "skip").iterdir()] == ["a.h5"]
    assert "1 bad images were skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cluster", "match"),
    [
        (ClusterOptions(scheduler="local", gpus=True), "--gpus: simulation runs on the CPU"),
        (ClusterOptions(threads=2), "--threads: threads of worker processes, and there are none"),
    ],
)
def test_options_of_workers_that_mean_nothing_are_refused(
    images: Path, tmp_path: Path, cluster: ClusterOptions, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        simulate(images, tmp_path / "out", matrix=MATRIX, cluster=cluster)


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_leaves_whole_volumes(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [images, out, "--matrix", *MATRIX, "--group-size", 1, "--scheduler", "local:2"]
    command = [sys.executable, "-m", "recon", "simulate", *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL) as started:
        deadline = time.monotonic() + 240
        while not list(out.glob("*.h5")):
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.005)
        family = psutil.Process(started.pid).children(recursive=True)
        os.killpg(started.pid, signal.SIGINT)
        assert started.wait(timeout=60) == 130
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert {path.suffix for path in out.rglob("*")} == {".h5"}
    assert all(volume.n_slices == 1 for volume in _volumes(out).values())
