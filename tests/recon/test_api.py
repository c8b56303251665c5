"""The Python interface: the same images as the command, and nothing written unless asked."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

import recon
from kspace.io.mrd.images import read_images
from recon import api
from recon.commands.run import run
from recon.run.options import RunOptions
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recon.example_scan(tmp_path_factory.mktemp("scan") / "scan.h5", matrix=64, n_slices=2, n_coils=4, acceleration=2)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan without noise scan, which the pipeline warns of."""
    from dataclasses import replace

    from kspace.simulation.measurement import write_scan
    from recon.commands.demo import head_scan

    scan = head_scan(matrix=48, n_slices=1, n_coils=3, factor=1)
    imaging = [r for r in range(len(scan.headers)) if not scan.headers["flags"][r] & np.uint64(1 << 18)]
    target = tmp_path_factory.mktemp("bare") / "bare.h5"
    write_scan(replace(scan, headers=scan.headers[imaging]), target)
    return target


@pytest.mark.parametrize("method", ["sense", "rss", "gancs"])
def test_images_are_those_of_the_command(path: Path, tmp_path: Path, method: str) -> None:
    run([path], tmp_path, RunOptions(method=method, format="mrd", complex=method != "rss"))
    with recon.open(path) as scan, warnings.catch_warnings():
        warnings.simplefilter("ignore", recon.ReconWarning)  # R = 1.5 is less than the generator was trained on
        images = scan.reconstruct(method=method)
    stored = [one.image.data for one in read_images(tmp_path / "scan.mrd.h5")]
    assert len(images) == len(stored) == 2
    assert all(torch.equal(image.data, data) for image, data in zip(images, stored, strict=True))
    assert images.generated == (method == "gancs")
    assert [image.role for image in images.beside] == (["sense", "sense"] if method == "gancs" else [])
    assert [image.role for image in images.maps] == (["prior", "difference"] * 2 if method == "gancs" else [])
    assert images.numpy().shape == (2, 64, 64)
    np.testing.assert_array_equal(images[-1].numpy(), stored[-1][0].numpy())


def test_nothing_is_written_until_save_which_writes_what_the_command_writes(path: Path, tmp_path: Path) -> None:
    before = sorted(p.name for p in path.parent.iterdir())
    folder = tmp_path / "api"
    with recon.open(path) as scan:
        images = scan.reconstruct(slices=[1])
    assert sorted(p.name for p in path.parent.iterdir()) == before
    assert list(tmp_path.iterdir()) == []
    written = images.save(folder, formats=("dicom", "nifti"))  # after the scan was closed
    run([path], tmp_path / "command", RunOptions(slices="1", format="dicom,nifti"))
    assert [p.name for p in written] == ["scan.nii.gz", "scan_dicom", "scan.json"]
    assert {p.name for p in (tmp_path / "command").iterdir()} == {p.name for p in written}
    ours, theirs = (json.loads((tmp_path / name / "scan.json").read_text()) for name in ("api", "command"))
    assert ours["parameters"] == theirs["parameters"]
    assert ours["source_sha256"] == theirs["source_sha256"] == images.records[0]["source_sha256"]
    with pytest.raises(recon.InputError, match=r"exists already; give --force"):
        images.save(folder, formats=("dicom",))
    assert images.save(folder, formats="nifti", force=True)[0].name == "scan.nii.gz"
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_a_failed_save_leaves_the_folder_as_it_was(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recon.open(path) as scan:
        images = scan.reconstruct("zero-filled", slices=0)

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recon.output.png.write_montage", fail)
    with pytest.raises(recon.InputError, match="No space left"):
        images.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_scan_says_what_is_in_the_file(path: Path) -> None:
    with recon.open(str(path)) as scan:
        assert (scan.kind, scan.shape, scan.n_coils, scan.n_slices) == ("ISMRMRD", (1, 64, 64), 4, 2)
        assert scan.encodings == (0,)
        assert [index.slice for index in scan.indices] == [0, 1]
        assert scan.noise is not None
        assert scan.noise.covariance.shape == (4, 4)
        assert scan.warnings == ()
        assert scan.header(1).geometry.position_m != scan.geometry.position_m
        assert "2 complete (2 slices" in scan.describe()
        assert repr(scan) == ("<Scan scan.h5: ISMRMRD, 2 images in 2 slices, 64 x 64 (x y), 4 coils, R = 2, noise scan>")
        assert "<td style='text-align:left'>4 coils</td>" in scan._repr_html_()


def test_samples_maps_and_mask_are_those_that_the_pipeline_uses(path: Path) -> None:
    from recon.methods.classical import CgSense

    with recon.open(path) as scan:
        raw, k, op = scan.kspace(1, prepared=False), scan.kspace(1), scan.operator(1)
        assert raw.data.shape == (4, 64, 128)
        assert k.data.shape == (4, 64, 64)
        assert "whiten" in k.header.steps
        assert torch.equal(scan.mask(1), k.mask)
        assert torch.equal(scan.maps(1), op.maps)
        assert bool((k.data[:, ~k.mask[0, :, 0]] == 0).all())
        image = CgSense()(k.data, op)
        assert torch.equal(image, scan.reconstruct(slices="1")[0].data[0])


def test_warnings_are_python_warnings_and_stay_on_the_result(bare: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with recon.open(bare) as scan:
        with pytest.warns(recon.ReconWarning, match="no noise scan in bare.h5") as caught:
            images = scan.reconstruct("zero-filled")
        assert caught[0].filename == __file__
    assert any("no noise scan" in message for message in images.warnings)
    assert capfd.readouterr().err == ""
    with warnings.catch_warnings(), recon.open(bare) as scan:
        warnings.simplefilter("error")
        scan.reconstruct("rss", no_whiten=True)


def test_a_closed_scan_is_refused_and_its_images_are_not(path: Path) -> None:
    scan = recon.open(path)
    images = scan.reconstruct("rss")
    scan.close()
    scan.close()
    assert scan.closed
    assert "closed" in repr(scan)
    assert "closed" in scan._repr_html_()
    for use in (lambda: scan.shape, lambda: scan.reconstruct(), lambda: scan.kspace(), scan.describe, scan.__enter__):
        with pytest.raises(recon.InputError, match=r"scan\.h5: the scan was closed; open it again"):
            use()
    assert images[0].numpy().shape == (64, 64)
    assert repr(images) == "<Images scan.h5, rss, 2 of 64 x 64, 0 warnings, NOT FOR DIAGNOSTIC USE>"


def test_a_converted_scan_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    from contextlib import contextmanager

    from recon.run.input import MrdSource

    ended = []

    @contextmanager
    def source(given: Path) -> Any:
        try:
            yield MrdSource(given)
        finally:
            ended.append(given)

    monkeypatch.setattr(api, "open_source", source)
    scan = recon.open(path)
    del scan
    gc.collect()
    assert ended == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "nonsense"}, "nonsense"),
        ({"lamda": "much"}, "'much' is a str, expected float or NoneType"),
        ({"slices": [0, 7]}, "'7' selects what is not there"),
        ({"strength": 2}, "there is no option 'strength'"),
        ({"device": "tpu"}, "'tpu' is a str, expected 'auto', 'cpu', 'cuda'"),
        ({"calibration_width": 2.5}, "2.5 is a float, expected int"),
        ({"no_whiten": 1}, "1 is a int, expected bool"),
        ({"method": "rss", "maps": "jsense"}, "rss needs no coil maps"),
        ({"noise": "nowhere.h5"}, "no such file"),
    ],
)
def test_wrong_options_are_input_errors(path: Path, options: dict[str, Any], message: str) -> None:
    with recon.open(path) as scan, pytest.raises(recon.InputError, match=message):
        scan.reconstruct(**options)


def test_wrong_places_and_files_are_input_errors(path: Path, tmp_path: Path) -> None:
    with pytest.raises(recon.InputError, match="no such file"):
        recon.open(tmp_path / "nowhere.h5")
    with recon.open(path) as scan:
        with pytest.raises(recon.InputError, match="no complete image slice 9"):
            scan.kspace(9)
        with pytest.raises(recon.InputError, match="no encoding 3"):
            scan.header(0, encoding=3)
        with pytest.raises(recon.InputError, match="no counter 'echo'"):
            scan.mask(0, echo=1)  # type: ignore[call-arg]
        with pytest.raises(recon.InputError, match="is a magnitude"):
            scan.reconstruct("rss").save(tmp_path, complex=True)
        with pytest.raises(recon.InputError, match="unknown format 'tiff'"):
            scan.reconstruct("rss").save(tmp_path, formats=("tiff",))
    with pytest.raises(recon.InputError, match="the file exists"):
        recon.example_scan(path)


def test_options_of_the_interface_are_those_of_the_command() -> None:
    ours, theirs = set(api.ReconstructOptions.__annotations__), set(get_type_hints(RunOptions))
    assert theirs - ours == {"method", "format", "complex", "mrd_pixels", "strict", "force"}
    assert ours < theirs


def test_opening_and_describing_a_scan_needs_no_torch(path: Path) -> None:
    program = (
        "import sys, recon\nwith recon.open(sys.argv[1]) as scan:\n"
        "    repr(scan), scan.describe(), scan.geometry, scan.noise\nprint('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert done.stdout.strip() == "False"


def test_names_of_methods_are_those_that_reconstruct() -> None:
    names = recon.method_names()
    assert names[:2] == ("rss", "zero-filled")
    assert {"sense", "tv", "refinegan", "dagan"} <= set(names)
