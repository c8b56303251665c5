"""Which scans a batch has, and where their images go."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path, PurePosixPath

import pytest

from kspace.errors import InputError
from recon.batch import bids
from recon.batch.inputs import BatchInputs
from recon.batch.options import BatchOptions, ClusterOptions
from recon.batch.run import prepare
from recon.run.options import RunOptions


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def outputs(*given: object, **options: object) -> list[str]:
    return [entry.name for entry in BatchInputs([str(g) for g in given], **options)]  # type: ignore[arg-type]


def test_a_folder_is_repeated_so_that_equal_stems_do_not_collide(tmp_path: Path) -> None:
    touch(tmp_path / "in/sub-02/scan.h5", tmp_path / "in/sub-01/scan.h5", tmp_path / "in/sub-01/notes.txt")
    touch(tmp_path / "in/.hidden/scan.h5", tmp_path / "in/old.mrd.h5", tmp_path / "in/meas.dat")
    assert outputs(tmp_path / "in") == ["meas", "sub-01/scan", "sub-02/scan"]
    assert BatchInputs([str(tmp_path / "in")]).check() == 3


def test_files_and_several_folders_are_named_from_the_folder_above_them(tmp_path: Path) -> None:
    touch(tmp_path / "a/1/scan.h5", tmp_path / "a/2/scan.h5", tmp_path / "b/scan.h5")
    assert outputs(tmp_path / "a/1/scan.h5", tmp_path / "a/2/scan.h5") == ["1/scan", "2/scan"]
    assert outputs(tmp_path / "a", tmp_path / "b") == ["a/1/scan", "a/2/scan", "b/scan"]
    assert outputs(tmp_path / "b", root=tmp_path) == ["b/scan"]


def test_patterns(tmp_path: Path) -> None:
    touch(tmp_path / "site/sub-1/raw/x.dat", tmp_path / "site/sub-2/raw/x.dat", tmp_path / "site/sub-2/raw/y.h5")
    assert outputs(tmp_path / "site/*/raw/*.dat") == ["sub-1/raw/x", "sub-2/raw/x"]
    assert outputs(tmp_path / "site/**/y.h5") == ["sub-2/raw/y"]
    touch(tmp_path / "site/out/sub-2/raw/y.mrd.h5")  # images of an earlier run
    assert outputs(tmp_path / "site/**/*.h5") == ["sub-2/raw/y"]


def test_lists_name_files_relative_to_themselves_and_csv_may_state_outputs(tmp_path: Path) -> None:
    touch(tmp_path / "data/s1/scan.h5", tmp_path / "data/s2/scan.h5")
    (tmp_path / "list.txt").write_text("# two scans\ndata/s1/scan.h5\n\ndata/s2/scan.h5\n")
    assert outputs(tmp_path / "list.txt") == ["s1/scan", "s2/scan"]
    (tmp_path / "list.csv").write_text("age,path,output\n31,data/s1/scan.h5,first/image\n40,data/s2/scan.h5,\n")
    assert outputs(tmp_path / "list.csv") == ["first/image", "s2/scan"]


def test_parts_are_disjoint_complete_and_stay_when_scans_are_added(tmp_path: Path) -> None:
    touch(*(tmp_path / f"in/{i}/scan.h5" for i in range(60)))
    parts = [set(outputs(tmp_path / "in", share=(i, 4))) for i in range(4)]
    assert sum(map(len, parts)) == 60 == len(set().union(*parts))
    assert min(map(len, parts)) > 5
    touch(*(tmp_path / f"in/{i}/more.h5" for i in range(60)))
    assert all(part <= set(outputs(tmp_path / "in", share=(i, 4))) for i, part in enumerate(parts))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("sub-01/ses-1/anat/sub-01_ses-1_T1w.h5", "sub-01/ses-1/anat/sub-01_ses-1_desc-l1wavelet_T1w"),
        ("sub-01/anat/sub-01_acq-fast_run-2.h5", "sub-01/anat/sub-01_acq-fast_run-2_desc-l1wavelet_MRI"),
        ("sub-01/ses-2/meas_MID00123.dat", "sub-01/ses-2/sub-01_ses-2_acq-measMID00123_desc-l1wavelet_MRI"),
    ],
)
def test_bids_names(raw: str, expected: str) -> None:
    assert str(bids.output(PurePosixPath(raw), "l1-wavelet")) == expected


def test_a_bids_tree_goes_to_its_derivatives_with_a_description(tmp_path: Path) -> None:
    touch(tmp_path / "sourcedata/sub-01/anat/sub-01_T1w.h5", tmp_path / "derivatives/other/sub-01/x.h5")
    (tmp_path / "dataset_description.json").write_text('{"Name": "Heads", "BIDSVersion": "1.9.0"}')
    made = prepare([str(tmp_path)], None, RunOptions(), BatchOptions(), ClusterOptions())
    assert made.folder == tmp_path / "derivatives" / "recon"
    assert [entry.name for entry in made.inputs] == ["sub-01/anat/sub-01_desc-sense_T1w"]
    bids.describe(tmp_path, made.folder, "sense")
    said = json.loads((made.folder / "dataset_description.json").read_text())
    assert said["DatasetType"] == "derivative"
    assert said["BIDSVersion"] == "1.9.0"
    assert said["GeneratedBy"][0]["Name"] == "recon"


def refused(match: str, *given: object, output: Path | None = None, **options: object) -> None:
    with pytest.raises(InputError, match=match):
        prepare([str(g) for g in given], output, RunOptions(), BatchOptions(**options), ClusterOptions())  # type: ignore[arg-type]


def test_bad_inputs_are_one_line_each(tmp_path: Path) -> None:
    empty, same = tmp_path / "empty", tmp_path / "same"
    empty.mkdir()
    touch(same / "scan.h5", same / "scan.dat")
    refused("the inputs: no scans were given; give files")
    refused(f"{empty}: no scans found; folders are searched for", empty)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    refused("no scans found", tmp_path / "empty.txt")
    refused(r"scan\.dat and .*scan\.h5 would write the same files \(scan\.\*\); give --root", same)
    refused("the images would lie in the input folder", same, output=same / "out")
    refused("the list cannot be read", tmp_path / "absent.txt")
    (tmp_path / "table.csv").write_text("file\nscan.h5\n")
    refused("the columns are file; name one 'path'", tmp_path / "table.csv")
    (tmp_path / "leaving.csv").write_text("path,output\nscan.h5,../other\n")
    refused("the output '../other' leaves the folder of the batch", tmp_path / "leaving.csv")
    refused("does not lie in", same / "scan.h5", root=empty)
    (tmp_path / "file").touch()
    refused("the output is a file", same / "scan.h5", output=tmp_path / "file")
    for part in ("0/4", "5/4", "1", "a/b"):
        refused(f"--part: '{part}' is no part", same / "scan.h5", part=part)


def test_a_folder_that_cannot_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        touch(folder / "in/closed/scan.h5")
        (folder / "in/closed").chmod(0)
        child = os.fork() if os.geteuid() == 0 else None
        if child is None:
            refused("closed: the folder cannot be read", folder / "in")
        elif child == 0:
            code = 1
            try:
                os.seteuid(65534)  # root reads everything
                refused("closed: the folder cannot be read", folder / "in")
                code = 0
            finally:
                os._exit(code)
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        (folder / "in/closed").chmod(0o755)
