"""From raw files of every kind to images that show what was measured."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
import torch

from kspace import coils, preprocess
from kspace.container import Image, KSpace
from kspace.errors import InputError
from kspace.io.mrd.images import read_images
from kspace.operators import Sense
from kspace.simulation.acquisition import abort, add_noise_scan, coil_covariance, repeat
from models import systems
from recon.commands.run import run
from recon.methods import generator, weights
from recon.methods.choose import refined
from recon.run.input import MrdSource
from recon.run.log import Log
from recon.run.options import RunOptions
from recon.run.pipeline import reconstruct_file
from recon.run.prepare import prepare
from tests.support import raw_files

QUIET = RunOptions(method="zero-filled", format="mrd", complex=True)


def images_of(path: Path) -> np.ndarray:
    """Complex or real ``(image, z, y, x)`` of an MRD file, in order."""
    return np.stack([stored.image.data.numpy() for stored in read_images(path)])


def nrmse(image: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(image - truth) / np.linalg.norm(truth))


def combined(case: raw_files.Case, **which: int) -> np.ndarray:
    """What a perfect reconstruction shows: the true image times the coils' root sum of squares, ``(z, y, x)``."""
    return np.sqrt((np.abs(case.coil_images(**which)) ** 2).sum(0))


FULLY_SAMPLED: dict[str, Callable[[Path], raw_files.Case]] = {
    "simple": raw_files.simple,
    "oversampled": raw_files.oversampled,
    "discarding": raw_files.discarding,
    "reversed": raw_files.reversed_lines,
    "other lines": raw_files.with_other_lines,
    "without limits": raw_files.without_limits,
    "odd": raw_files.odd,
    "volume": raw_files.volume,
    "oblique": raw_files.oblique,
}


@pytest.mark.parametrize("name", FULLY_SAMPLED)
def test_rss_of_a_fully_sampled_scan_is_the_truth(name: str, tmp_path: Path) -> None:
    case = FULLY_SAMPLED[name](tmp_path / "scan.h5")
    assert run([case.path], tmp_path, RunOptions(method="rss", format="mrd")) == 0
    image = images_of(tmp_path / "scan.mrd.h5")[0]
    # Samples that are discarded are missing, and an image that is cut before it is interpolated has lost what lay beyond.
    assert nrmse(image, combined(case)) < {"discarding": 0.05, "oversampled": 0.01}.get(name, 1e-4)


@pytest.mark.parametrize("method", ["sense", "l1-wavelet", "tv"])
def test_acceleration_is_undone(method: str, tmp_path: Path) -> None:
    # The field of view fits closely, so that aliases fall onto the object.
    case = raw_files.accelerated(tmp_path / "scan.h5", matrix=(48, 48, 1), fov_m=(0.17, 0.17, 0.005))
    options = RunOptions(method=method, format="mrd")
    assert run([case.path], tmp_path, options) == 0
    assert run([case.path], tmp_path / "zf", replace(options, method="zero-filled")) == 0
    truth = combined(case)
    image, aliased = images_of(tmp_path / "scan.mrd.h5")[0], images_of(tmp_path / "zf" / "scan.mrd.h5")[0]
    assert nrmse(image, truth) < 0.03
    assert nrmse(image, truth) < 0.3 * nrmse(aliased, truth)


@pytest.mark.parametrize("calibration", ["interleaved", "separate"])
def test_maps_from_what_there_is(calibration: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scan.h5"
    case = raw_files.interleaved(path) if calibration == "interleaved" else raw_files.accelerated(path, mode="separate")
    assert run([case.path], tmp_path, RunOptions(method="sense", format="mrd")) == 0
    assert nrmse(images_of(tmp_path / "scan.mrd.h5")[0], combined(case)) < 0.2
    said = "average over the interleaved repetitions" in capsys.readouterr().err
    assert said == (calibration == "interleaved")


def test_without_calibration_the_scan_is_refused_or_maps_are_given(tmp_path: Path) -> None:
    case = raw_files.uncalibrated(tmp_path / "scan.h5")
    with pytest.raises(InputError, match="calibration lines around the centre of k-space"):
        run([case.path], tmp_path, RunOptions(format="mrd"))
    assert not list(tmp_path.glob("scan.*.h5"))
    maps = case.maps()[:, 0]
    np.save(tmp_path / "maps.npy", maps)
    assert run([case.path], tmp_path, RunOptions(format="mrd", maps=str(tmp_path / "maps.npy"), lamda=1e-4)) == 0
    assert nrmse(images_of(tmp_path / "scan.mrd.h5")[0], combined(case)) < 0.1


def test_a_three_dimensional_scan_is_decoupled(tmp_path: Path) -> None:
    case = raw_files.accelerated_volume(tmp_path / "scan.h5")
    assert run([case.path], tmp_path, RunOptions(method="sense", format="mrd,nifti")) == 0
    image = images_of(tmp_path / "scan.mrd.h5")[0]
    truth = combined(case)
    assert image.shape == truth.shape
    assert nrmse(image, truth) < 0.12
    assert run([case.path], tmp_path / "zf", RunOptions(method="zero-filled", format="mrd")) == 0
    assert nrmse(image, truth) < 0.7 * nrmse(images_of(tmp_path / "zf" / "scan.mrd.h5")[0], truth)


def test_every_counter_is_its_own_image(tmp_path: Path) -> None:
    case = raw_files.counters(tmp_path / "scan.h5")
    assert run([case.path], tmp_path, RunOptions(method="rss", format="mrd,nifti")) == 0
    record = json.loads((tmp_path / "scan.json").read_text())
    assert len(record["mask"]["images"]) == 32
    volumes = record["volumes"]["main"]
    assert [v["repetition"] for v in volumes[:4]] == [0, 1, 0, 1]
    assert [v["phase"] for v in volumes[:4]] == [0, 0, 1, 1]
    assert run([case.path], tmp_path / "part", RunOptions(method="rss", format="mrd", slices="1", repetitions="0")) == 0
    assert len(json.loads((tmp_path / "part" / "scan.json").read_text())["mask"]["images"]) == 8


def test_what_went_wrong_in_the_scan_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_files.dead_coil(tmp_path / "dead.h5")
    raw_files.aborted(tmp_path / "aborted.h5")
    raw_files.simple(tmp_path / "quiet.h5")
    inputs = [tmp_path / f"{name}.h5" for name in ("dead", "aborted", "quiet")]
    assert run(inputs, tmp_path / "out", RunOptions(method="zero-filled", format="mrd")) == 0
    error = capsys.readouterr().err
    assert "coils 2" in error
    assert "left out: slice 2" in error
    assert run(inputs[1:2], tmp_path / "all", RunOptions(method="rss", format="mrd", incomplete=True)) == 0
    assert [len(images_of(tmp_path / name / "aborted.mrd.h5")) for name in ("out", "all")] == [2, 3]
    assert "no noise scan in quiet.h5: going on unwhitened" in error
    for name in ("dead", "aborted"):
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["warnings"]


def test_an_empty_slice_stays_empty(tmp_path: Path) -> None:
    case = raw_files.with_empty_slice(tmp_path / "scan.h5")
    assert run([case.path], tmp_path, RunOptions(method="sense", format="mrd")) == 0
    images = images_of(tmp_path / "scan.mrd.h5")
    assert np.isfinite(images).all()
    assert np.abs(images[1]).max() < 0.3 * np.abs(images[0]).max()


def test_two_encodings_are_two_sets_of_files(tmp_path: Path) -> None:
    case = raw_files.two_encodings(tmp_path / "scan.h5")
    assert run([case.path], tmp_path, RunOptions(method="rss", format="mrd")) == 0
    for encoding in (0, 1):
        image = images_of(tmp_path / f"scan_enc{encoding}.mrd.h5")[0]
        assert nrmse(image, combined(case, encoding=encoding)) < 1e-4
    assert run([case.path], tmp_path / "one", RunOptions(method="rss", format="mrd", encoding=1)) == 0
    assert [p.name for p in (tmp_path / "one").glob("*.mrd.h5")] == ["scan_enc1.mrd.h5"]
    with pytest.raises(InputError, match="there is no encoding 7"):
        run([case.path], tmp_path / "none", RunOptions(method="rss", encoding=7))


def test_partial_fourier_is_filled_by_pocs(tmp_path: Path) -> None:
    case = raw_files.partial(tmp_path / "scan.h5")
    for how in ("zero-filled", "pocs"):
        assert run([case.path], tmp_path / how, RunOptions(method="rss", format="mrd", partial_fourier=how)) == 0
    truth = combined(case)
    errors = [nrmse(images_of(tmp_path / how / "scan.mrd.h5")[0], truth) for how in ("zero-filled", "pocs")]
    assert errors[1] < 0.8 * errors[0]


def test_whitening_and_its_switch(tmp_path: Path) -> None:
    case = raw_files.noisy(tmp_path / "scan.h5")
    quiet = raw_files.simple(tmp_path / "quiet.h5")
    assert run([case.path], tmp_path / "white", QUIET) == 0
    assert run([case.path], tmp_path / "raw", replace(QUIET, no_whiten=True)) == 0
    assert run([quiet.path], tmp_path / "borrowed", replace(QUIET, noise=case.path)) == 0
    white, raw, borrowed = (
        images_of(tmp_path / n)[0] for n in ("white/scan.mrd.h5", "raw/scan.mrd.h5", "borrowed/quiet.mrd.h5")
    )
    scale = np.abs(white).max() / np.abs(raw).max()
    assert scale > 2  # whitened data are in units of the noise
    assert nrmse(np.abs(borrowed), np.abs(white)) < 0.3


def test_noise_of_another_scan_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = raw_files.noisy(tmp_path / "scan.h5")
    other = replace(raw_files.plain(noise=0.05), covariance=coil_covariance(4, 0.2, seed=1))
    raw_files.save(add_noise_scan(other, 100), tmp_path / "other.h5")
    reconstruct_file(case.path, tmp_path / "good", QUIET)
    assert "noise scan" not in capsys.readouterr().err
    written = reconstruct_file(case.path, tmp_path / "bad", replace(QUIET, noise=tmp_path / "other.h5"))
    said = r"the noise scan holds signal, or is another scan's: in the outermost samples .* has 0\.0\d+ times .* by 0\.\d\d "
    (warning,) = [w for w in json.loads(written[-1].read_text())["warnings"] if "noise scan" in w]
    assert re.match(said, warning)
    assert "--no-whiten weighs all coils alike, --noise FILE takes" in warning


def test_samples_that_were_not_acquired_do_not_matter(tmp_path: Path) -> None:
    """The same scan with its lines in another order, and calibration only where it was measured, is the same image."""
    case = raw_files.accelerated(tmp_path / "scan.h5")
    assert run([case.path], tmp_path / "a", QUIET) == 0
    assert run([case.path], tmp_path / "b", replace(QUIET, virtual_coils=3)) == 0
    record = json.loads((tmp_path / "a" / "scan.json").read_text())
    assert record["mask"]["images"][0]["acceleration"] > 1.5
    assert json.loads((tmp_path / "b" / "scan.json").read_text())["parameters"]["virtual_coils"] == 3


@pytest.mark.parametrize("method", ["rss", "zero-filled"])
@pytest.mark.parametrize("factor", [1e-36, 1e-30, 1e-20, 1e30])
def test_the_unit_of_the_samples_does_not_matter(method: str, factor: float, tmp_path: Path) -> None:
    images = []
    for name, by in (("one", 1.0), ("other", factor)):
        path = raw_files.simple(tmp_path / f"{name}.h5").path
        with h5py.File(path, "r+") as file:
            rows = file["dataset/data"][:]
            for row in rows:
                row["data"] = (row["data"].astype(np.float64) * by).astype(np.float32)
            file["dataset/data"][...] = rows
        reconstruct_file(path, tmp_path / "out", RunOptions(method=method, format="mrd"))
        images.append(read_images(tmp_path / "out" / f"{name}.mrd.h5")[0].image.data.double().numpy() / by)
    assert np.abs(images[1] - images[0]).max() < 1e-5 * images[0].max()


@pytest.mark.parametrize("name", ["stream.bin", "stream.mrd"])
def test_a_recorded_stream_gives_the_images_of_the_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    case = raw_files.noisy(tmp_path / "scan.h5")
    with h5py.File(case.path, "r") as file:
        xml, rows = file["dataset/xml"][0], file["dataset/data"][:]
    readouts = [b"\xf0\x03" + row["head"].tobytes() + row["data"].tobytes() for row in rows]  # 1008
    header = b"\x03\0" + len(xml + b"\0").to_bytes(4, "little") + xml + b"\0"
    whole = header + b"".join(readouts) + b"\x04\0"
    (tmp_path / name).write_bytes(whole)
    written = reconstruct_file(tmp_path / name, tmp_path / "out", QUIET)
    reconstruct_file(case.path, tmp_path / "out", QUIET)
    np.testing.assert_array_equal(images_of(tmp_path / "out" / "stream.mrd.h5"), images_of(tmp_path / "out" / "scan.mrd.h5"))
    record = json.loads(written[-1].read_text())
    assert record["source"] == str(tmp_path / name)
    assert record["source_sha256"] == hashlib.sha256(whole).hexdigest()
    (tmp_path / "cut.bin").write_bytes(whole[:-5])
    with pytest.raises(InputError, match=f"{tmp_path}/cut.bin: no complete image"):
        reconstruct_file(tmp_path / "cut.bin", tmp_path / "out", QUIET)
    reconstruct_file(tmp_path / "cut.bin", tmp_path / "out", replace(QUIET, incomplete=True))
    assert "recon: warning: the stream breaks off after" in capsys.readouterr().err
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_compressed_file_says_how_to_unpack_it(tmp_path: Path) -> None:
    case = raw_files.simple(tmp_path / "scan.h5")
    packed = tmp_path / "scan.h5.gz"
    packed.write_bytes(gzip.compress(case.path.read_bytes()))
    with pytest.raises(InputError, match=f"{packed}: the file is compressed with gzip; unpack it first: gunzip -k scan.h5.gz"):
        reconstruct_file(packed, tmp_path / "out", QUIET)


def test_conjugation_turns_the_image(tmp_path: Path) -> None:
    case = raw_files.simple(tmp_path / "scan.h5", matrix=(31, 31, 1))
    assert run([case.path], tmp_path / "a", RunOptions(method="rss", format="mrd")) == 0
    assert run([case.path], tmp_path / "b", RunOptions(method="rss", format="mrd", conjugate=True)) == 0
    a, b = (images_of(tmp_path / n / "scan.mrd.h5")[0, 0] for n in ("a", "b"))
    assert nrmse(b[::-1, ::-1], a) < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunOptions(method="magic"), "magic"),
        (RunOptions(method="rss", lamda=0.1), "rss has no regularisation weight"),
        (RunOptions(method="rss", complex=True), "rss is a magnitude"),
        (RunOptions(format="mrd,bmp"), "--format: unknown format 'bmp'; choose from mrd, dicom"),
        (RunOptions(slices="0", repetitions="1"), "--repetitions: '1' selects what is not there"),
        (RunOptions(slices="4"), "--slices: '4' selects what is not there; the file has 0-0"),
        (RunOptions(slices="a-b"), "'a-b' is no selection"),
        (RunOptions(maps="nothing.npy"), "nothing.npy"),
        (RunOptions(noise=Path("nothing.h5")), "nothing.h5"),
        (RunOptions(virtual_coils=99), "99 virtual coils requested"),
        (RunOptions(partial_fourier="pocs"), "sampled symmetrically"),
        (RunOptions(device="cuda"), "no CUDA device"),
    ],
)
def test_options_that_cannot_be(options: RunOptions, message: str, tmp_path: Path) -> None:
    case = raw_files.simple(tmp_path / "scan.h5")
    if options.device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        run([case.path], tmp_path / "out", options)
    assert sorted(tmp_path.rglob("*")) == before


def test_one_bad_file_does_not_cost_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = raw_files.simple(tmp_path / "scan.h5")
    (tmp_path / "empty.h5").touch()
    assert run([tmp_path / "empty.h5", case.path], tmp_path / "out", RunOptions(method="rss", format="png")) == 2
    assert capsys.readouterr().err.startswith("recon: error: ")
    assert (tmp_path / "out" / "scan.png").exists()
    with pytest.raises(InputError, match="would write the same files"):
        run([case.path, tmp_path / "b" / "scan.h5"], tmp_path / "out", RunOptions())


def test_outputs_are_not_overwritten_and_inputs_not_touched(tmp_path: Path) -> None:
    case = raw_files.simple(tmp_path / "scan.h5")
    content, time = case.path.read_bytes(), case.path.stat().st_mtime_ns
    options = RunOptions(method="rss", format="mrd")
    assert run([case.path], tmp_path, options) == 0
    with pytest.raises(InputError, match="--force"):
        run([case.path], tmp_path, options)
    assert run([case.path], tmp_path, replace(options, force=True)) == 0
    assert (case.path.read_bytes(), case.path.stat().st_mtime_ns) == (content, time)


def test_a_fastmri_volume_gives_a_submission_in_the_units_of_its_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from recon.commands.convert import convert
    from recon.commands.evaluate import evaluate

    case = raw_files.noisy(tmp_path / "scan.h5", noise=0.01)
    convert(case.path, tmp_path / "volume.h5")
    for method in ("rss", "sense"):
        assert run([tmp_path / "volume.h5"], tmp_path / method, RunOptions(method=method, format="mrd")) == 0
    with h5py.File(tmp_path / "volume.h5", "r") as volume, h5py.File(tmp_path / "rss" / "volume.h5", "r") as submission:
        target, reconstruction = volume["reconstruction_rss"][()], submission["reconstruction"][()]
    assert nrmse(reconstruction, target) < 1e-5
    evaluate(tmp_path / "volume.h5", tmp_path / "sense" / "volume.h5")
    assert "PSNR" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"exists already; give --force"):
        run([tmp_path / "volume.h5"], tmp_path / "rss", RunOptions(method="rss", format="png"))
    with pytest.raises(InputError, match="would overwrite its own input"):
        run([tmp_path / "volume.h5"], tmp_path, RunOptions(method="rss", format="png", force=True))


def small_weights(path: Path, coils: tuple[int, ...] = (2, 4, 8)) -> Path:
    """Weights of a small RefineGAN that was trained on nothing: its image is that of data consistency, near SENSE."""
    config = systems.resolve({"system": "refinegan", "generator": {"width": 4, "depth": 2}})
    generator = systems.build_generator(config)
    card = weights.Card("", config, envelope={"coils": coils, "acceleration": (1, 4)})
    weights.write(path, generator.state_dict(), card)
    return path


def test_a_generated_image_has_a_classical_one_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = raw_files.accelerated(tmp_path / "scan.h5")
    path = small_weights(tmp_path / "small.safetensors")
    options = RunOptions(method="refinegan", weights=path, format="mrd,dicom")
    assert run([case.path], tmp_path / "out", options) == 0
    assert "outside of what" not in capsys.readouterr().err
    stored = read_images(tmp_path / "out" / "scan.mrd.h5"), read_images(tmp_path / "out" / "scan_sense.mrd.h5")
    generated, sense = (images[0].image.data.numpy() for images in stored)
    assert nrmse(generated, sense) < 0.1
    record = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert record["generated"]
    assert record["parameters"]["weights sha256"] == weights.read_card(path).sha256
    types = {
        folder: pydicom.dcmread(next((tmp_path / "out" / folder).glob("*.dcm"))).ImageType[:2]
        for folder in ("scan_dicom", "scan_sense_dicom")
    }
    assert types == {"scan_dicom": ["DERIVED", "PRIMARY"], "scan_sense_dicom": ["ORIGINAL", "PRIMARY"]}


def test_a_scan_outside_of_the_training_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = raw_files.accelerated(tmp_path / "scan.h5")
    path = small_weights(tmp_path / "small.safetensors", coils=(12, 16))
    assert run([case.path], tmp_path / "out", RunOptions(method="refinegan", weights=path, format="mrd")) == 0
    assert "outside of what refinegan was trained on: 8 coils; trained with 12 to 16" in capsys.readouterr().err
    with pytest.raises(InputError, match="sense has no weights"):
        run([case.path], tmp_path / "a", RunOptions(method="sense", weights=path))
    with pytest.raises(InputError, match="has no regularisation weight"):
        run([case.path], tmp_path / "a", RunOptions(method="refinegan", weights=path, lamda=0.1))
    with pytest.raises(InputError, match="dagan"):
        run([case.path], tmp_path / "a", RunOptions(method="dagan", weights=path))


def test_options_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(InputError, match="--no-whiten forbids it"):
        RunOptions(no_whiten=True, noise=Path("noise.h5"))
    with pytest.raises(InputError, match="only MRD and NIfTI images can be complex"):
        RunOptions(complex=True, format="png,dicom")
    with pytest.raises(InputError, match="rss needs no coil maps"):
        RunOptions(method="rss", maps="jsense")


def test_a_file_gives_all_of_its_encodings_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recon.run import pipeline

    case = raw_files.two_encodings(tmp_path / "scan.h5")
    once = pipeline.reconstruct_image
    calls = []

    def fails_the_second_time(k: KSpace, *rest: object) -> list[Image]:
        calls.append(k.header.encoding)
        if len(calls) == 2:
            raise InputError("damaged")
        return once(k, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "reconstruct_image", fails_the_second_time)
    with pytest.raises(InputError, match="damaged"):
        run([case.path], tmp_path / "out", RunOptions(method="rss", format="mrd"))
    assert calls == [0, 1]
    assert not (tmp_path / "out").exists()


def test_repetitions_share_the_maps_that_they_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kspace import coils

    estimated = []
    estimate = coils.estimate_maps

    def counting(k: KSpace, *args: object, **options: object) -> torch.Tensor:
        maps = estimate(k, *args, **options)  # type: ignore[arg-type]
        estimated.append(k.header.index)
        return maps

    monkeypatch.setattr(coils, "estimate_maps", counting)
    case = raw_files.interleaved(tmp_path / "scan.h5")
    assert run([case.path], tmp_path / "out", RunOptions(format="mrd")) == 0
    assert len(estimated) == 1
    images = images_of(tmp_path / "out" / "scan.mrd.h5")
    assert all(nrmse(image, combined(case)) < 0.2 for image in images)


def test_many_incomplete_images_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = repeat(raw_files.plain(), "repetition", [1.0] * 12)
    case = raw_files.save(abort(scan, 75), tmp_path / "scan.h5")
    assert run([case.path], tmp_path / "out", RunOptions(method="rss", format="mrd")) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert 1 <= len(lines) <= 2
    assert any(" more: " in line for line in lines)


def test_refinement_is_chosen_by_the_scan_and_on_record(tmp_path: Path) -> None:
    case = raw_files.accelerated(tmp_path / "scan.h5")
    path = small_weights(tmp_path / "small.safetensors")
    stored = {}
    for refine in ("none", "residual", "stack", None):
        options = RunOptions(method="refinegan", weights=path, refine=refine, format="mrd,dicom", complex=True)  # type: ignore[arg-type]
        assert run([case.path], tmp_path / str(refine), options) == 0
        stored[refine] = read_images(tmp_path / str(refine) / "scan.mrd.h5")[0].image.data
    assert torch.equal(stored["stack"], stored[None])
    assert not torch.equal(stored["stack"], stored["none"])
    assert not torch.equal(stored["residual"], stored["none"])
    network = generator.load(path)
    source_file = MrdSource(case.path)
    k = prepare(source_file.load(0, source_file.images(0)[0]), source_file.noise, RunOptions(), Log())
    op = Sense(coils.estimate_maps(k), k.mask, k.header.noise_std or 1.0, k.n_averages)
    direct = preprocess.to_recon_matrix(network(k.data, op)[None, None], k.header)[0]
    assert torch.equal(stored["none"], direct)
    record = json.loads((tmp_path / "stack" / "scan.json").read_text())
    (entry,) = record["extra"]["refinement"]
    assert sum(entry["weights"].values()) == pytest.approx(1)
    assert set(entry["weights"]) == {"l1-wavelet", "small", "small+residual"}
    assert record["parameters"]["refine"] == "stack"
    assert entry["says"] in record["description"]
    derived = pydicom.dcmread(next((tmp_path / "stack" / "scan_dicom").glob("*.dcm"))).DerivationDescription
    assert entry["says"][:60] in derived
    meta = read_images(tmp_path / "stack" / "scan.mrd.h5")[0].meta
    assert entry["says"][:60] in str(meta["ImageComment"])
    assert json.loads((tmp_path / "none" / "scan.json").read_text())["extra"]["refinement"] == []
    with pytest.raises(InputError, match="sense is no generator"):
        run([case.path], tmp_path / "a", RunOptions(method="sense", refine="stack"))


def test_magnitudes_of_a_published_preset_are_not_refined(tmp_path: Path) -> None:
    network = generator.load(small_weights(tmp_path / "small.safetensors"))
    card = replace(network.card, config={**network.card.config, "preset": "published"})
    published = replace(network, card=card)
    assert refined(published, None) is published
    with pytest.raises(InputError, match="published preset, whose images are magnitudes"):
        refined(published, "residual")
