"""Jobs of a worker, done here: what is delivered in place of what was asked for is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kspace.io.mrd.stream import StreamImage, StreamParser
from kspace.simulation import acquisition as acquire
from kspace.simulation.measurement import write_scan
from recon.methods.generator import GeneratorReconstructor
from recon.serve.interface import ResolvedConfig
from recon.serve.jobs import Workshop
from recon.serve.options import ScannerOptions
from tests.support.raw_files import plain
from tests.support.served import scan_messages, session
from tests.support.volumes import N, written


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fully sampled slice: the bundled weights were trained on undersampled ones."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_scan(acquire.add_noise_scan(plain(noise=0.02, n_slices=1), 32), path)
    return path


def finish(
    scan: Path, folder: Path, options: ScannerOptions, classical: bool = False
) -> tuple[dict[str, Any], list[StreamImage]]:
    """What a worker answers for a whole scan, and the images that it sends."""
    folder.mkdir()
    stream = folder / "scan.mrd"
    stream.write_bytes(session(scan))
    sent: list[StreamImage] = []

    def deliver(path: Path) -> None:
        sent.extend(message for message in StreamParser().feed(path.read_bytes()) if isinstance(message, StreamImage))

    workshop = Workshop(ResolvedConfig(options), folder, lambda level, text: None, deliver)
    job = {"stream": stream, "xml": scan_messages(scan)[0], "out": folder / "images", "classical": classical}
    begun = workshop.do(job | {"kind": "begin", "config": None, "parameters": None})
    job |= {name: begun[name] for name in ("purpose", "options", "state")}
    done = workshop.do(job | {"kind": "finish", "file": folder / "scan.h5", "n_bytes": None, "sent": {}})
    return done, sent


def test_a_volume_off_the_grid_is_one_image(tmp_path: Path) -> None:
    """Whose planes are coupled, so that a generator has to give way."""
    path = written(tmp_path / "scan.h5")
    for method, n_fallbacks in (("sense", 0), ("dagan", 1)):
        done, sent = finish(path, tmp_path / method, ScannerOptions(method=method))
        assert (done["n_images"], done["fallbacks"], len(sent)) == (1, n_fallbacks, 1)
        assert sent[0].pixels.shape[-3:] == (N, N, N)


def test_classical_images_in_place_of_generated_ones_are_counted(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"method": "dagan", "refine": "none", "repeats": 0}
    done, sent = finish(scan, tmp_path / "guard", ScannerOptions(**options, guard="strict"))
    assert done["fallbacks"] == 1
    assert any("sense in place of dagan" in image.attributes for image in sent)
    done, _ = finish(scan, tmp_path / "lost", ScannerOptions(**options), classical=True)
    assert (done["fallbacks"], done["n_images"]) == (1, 1)
    monkeypatch.setattr(GeneratorReconstructor, "__call__", lambda self, y, op: float("nan") * op.adjoint(y))
    done, _ = finish(scan, tmp_path / "nan", ScannerOptions(**options))
    assert done["fallbacks"] == 1
    done, sent = finish(scan, tmp_path / "failed", ScannerOptions(**options, classical="none"))
    assert done["fallbacks"] == 1
    assert all("dagan failed, sense instead" in image.attributes for image in sent)
