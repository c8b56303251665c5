"""What cannot be used ends in one line that says what is wrong where and what to do, quickly, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.support import raw_files
from tests.support.warm import Ending, commands

WITHIN_S = 30  # a limit for hangs; what it takes is about a tenth of a second
MEMORY = 300 * 2**20  # beyond what the imports take; the files are smaller than 1 MB


@pytest.fixture(scope="module")
def recon() -> Iterator[Callable[..., Ending]]:
    """The command, its imports already made."""
    with commands() as run:
        yield run


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time stamp of every file below a folder, hidden ones included; folders count as files without content."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): (b"" if p.is_dir() else p.read_bytes(), p.stat().st_mtime_ns) for p in found}


def one_line(ending: Ending, path: Path | str) -> str:
    """The error line, after checking that it is one, names the file and says what to do."""
    errors = [line for line in ending.stderr.splitlines() if not line.startswith("recon: warning: ")]
    assert ending.status == 2, ending
    assert len(errors) == 1, ending.stderr
    assert re.fullmatch(r"recon: error: .+; .+", errors[0]), errors[0]
    assert str(path) in errors[0]
    assert ending.seconds < WITHIN_S
    return errors[0]


def set_xml(path: Path, change: Callable[[str], str]) -> None:
    with h5py.File(path, "r+") as file:
        file["dataset/xml"][0] = change(file["dataset/xml"][0].decode()).encode()


def altered(pattern: str, replacement: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        raw_files.simple(path)
        set_xml(path, lambda xml: re.sub(pattern, replacement, xml, flags=re.DOTALL))

    return build


MORE_BAD: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "matrix-area-huge": altered(r"<x>64</x>(\s*)<y>30</y>", r"<x>60000</x>\1<y>60000</y>"),
    "recon-matrix-huge": altered(r"(<reconSpace>.*?)<x>32</x>(\s*)<y>30</y>", r"\1<x>46000</x>\2<y>46000</y>"),
    "recon-matrix-large": altered(r"(<reconSpace>.*?)<x>32</x>", r"\1<x>1025</x>"),
    "header-of-something-else": altered("ismrmrdHeader", "html"),
    "no-coils": altered(r"<receiverChannels>\d+<", "<receiverChannels>0<"),
}
SAID = {
    "missing": "no such file",
    "empty": "empty",
    "folder": "folder",
    "not-hdf5": "not an HDF5 file",
    "truncated": "truncated",
    "no-acquisitions": "no acquisitions",
    "only-noise": "only noise",
    "header-truncated": "XML header is truncated",
    "header-not-xml": "not XML",
    "matrix-zero": "matrix 0 x 30",
    "matrix-huge": "matrix 1e+10 x 30",
    "channels-contradict": "3 channels",
    "samples-contradict": "63 samples",
    "line-outside": "outside the encoded matrix",
    "partition-outside": "outside the encoded matrix",
    "nan": "NaN or infinite",
    "infinite": "NaN or infinite",
    "subnormal": "below 1.2e-38, the smallest that single precision holds in full",
    "rosette": "trajectory 'rosette'",
    "recon-matrix-huge": "46000 x 46000 x 1, more than 16 times the encoded one, 64 x 30 x 1",
    "recon-matrix-large": "1025 x 30 x 1, more than 16 times",
}


@pytest.mark.parametrize("name", [*raw_files.BAD, *MORE_BAD])
def test_a_bad_file_is_one_line_and_nothing_else(name: str, tmp_path: Path, recon: Callable[..., Ending]) -> None:
    path = tmp_path / f"{name}.h5"
    (raw_files.BAD | MORE_BAD)[name](path)
    before = contents(tmp_path)
    for method in ("sense", "rss"):
        line = one_line(recon("run", str(path), "-o", str(tmp_path / "out"), "-m", method), path)
        assert SAID.get(name, "") in line
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_all_bad_files_at_once_through_the_real_command(tmp_path: Path) -> None:
    """One line each, in their order, and the good file among them is reconstructed."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, build in (raw_files.BAD | MORE_BAD).items():
        build(folder / f"{name}.h5")
    raw_files.simple(folder / "good.h5")
    before = contents(folder)
    names = [*raw_files.BAD, "good", *MORE_BAD]
    command = [sys.executable, "-m", "recon", "run", *(str(folder / f"{n}.h5") for n in names), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("recon: warning: ")]
    assert done.returncode == 2
    assert len(errors) == len(names) - 1
    for name, line in zip([n for n in names if n != "good"], errors, strict=True):
        assert line.startswith("recon: error: ")
        assert f"{folder / name}.h5" in line
    assert contents(folder) == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "good.json", "good.mrd.h5", "good.nii.gz", "good.png", "good_dicom"
    ]  # fmt: skip


# -- the output -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["file", "below-a-file", "/proc", "name-too-long"])
def test_an_output_folder_that_cannot_be(where: str, tmp_path: Path, recon: Callable[..., Ending]) -> None:
    case = raw_files.simple(tmp_path / "scan.h5")
    (tmp_path / "file").write_text("not a folder")
    out = {
        "file": tmp_path / "file",
        "below-a-file": tmp_path / "file" / "out",
        "/proc": Path("/proc/out"),
        "name-too-long": tmp_path / ("x" * 300),
    }[where]
    before = contents(tmp_path)
    one_line(recon("run", str(case.path), "-o", str(out)), out.name if where == "/proc" else tmp_path)
    assert contents(tmp_path) == before


def test_an_existing_output_stays_as_it_is(tmp_path: Path, recon: Callable[..., Ending]) -> None:
    case = raw_files.simple(tmp_path / "scan.h5")
    assert recon("run", str(case.path), "-o", str(tmp_path / "out"), "-m", "rss").status == 0
    before = contents(tmp_path)
    ending = recon("run", str(case.path), "-o", str(tmp_path / "out"))
    assert "exists already" in one_line(ending, tmp_path / "out")
    assert contents(tmp_path) == before
    assert recon("run", str(case.path), "-o", str(tmp_path / "out"), "-m", "rss", "--force").status == 0


def program(body: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run Python code that has made the imports of ``recon run``."""
    imports = (
        "import json, os, resource, signal, sys, time\n"
        "import recon.output.dicom, recon.output.png, recon.output.mrd, recon.output.nifti\n"
        "import recon.run.pipeline, recon.methods.solvers\nfrom recon.cli import main\n"
    )
    code = imports + body
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False, env=environment)


STARVED = """
def starved(beyond):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    command = os.fork()
    if command == 0:
        resource.setrlimit(resource.RLIMIT_AS, (used + beyond,) * 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main())
    return os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])

sizes = json.loads(sys.argv.pop(1))
for beyond in sizes:
    print(f"--- {beyond} {starved(beyond * 2**20)}", file=sys.stderr, flush=True)
"""


def test_out_of_memory_at_any_moment(tmp_path: Path) -> None:
    """With less memory than it takes, the command ends wherever the memory ends: while opening, reading, or computing."""
    case = raw_files.accelerated(tmp_path / "scan.h5", matrix=(128, 128, 1))
    out = tmp_path / "out"
    before = contents(tmp_path)
    done = program(STARVED, json.dumps([2, 8, 24, 40, 400]), "run", str(case.path), "-o", str(out), "-m", "sense")
    assert done.returncode == 0, done.stderr
    *starved, (status, enough) = [
        (line.split()[-1], [e for e in text.splitlines() if e.startswith("recon: error: ")])
        for text, line in re.findall(r"(.*?)(--- \d+ -?\d+)\n", done.stderr, re.DOTALL)
    ]
    assert (status, enough) == ("0", [])
    assert len(starved) == 4
    for status, errors in starved:
        assert (status, len(errors)) == ("2", 1), done.stderr
        # Some libraries do not look at what they got: then the process dies, and the parent says so.
        assert re.match(r"recon: error: (.*(out of|no) memory .+; |.*the process crashed .+ unless memory ran out)", errors[0])
        assert str(case.path) in errors[0]
    assert any("out of memory" in errors[0] for _, errors in starved)
    assert all(line.startswith(("recon: ", "--- ")) for line in done.stderr.splitlines()), done.stderr
    shutil.rmtree(out)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kib", [8, 40])
def test_a_file_that_may_not_grow(kib: int, tmp_path: Path) -> None:
    """Whichever of the formats meets the limit first: none is left."""
    case = raw_files.simple(tmp_path / "scan.h5")
    body = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({kib * 1024}, resource.RLIM_INFINITY))\nsys.exit(main())"
    before = contents(tmp_path)
    done = program(body, "run", str(case.path), "-o", str(tmp_path / "out"), "-m", "rss")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("recon: warning: ")]
    assert done.returncode == 2
    assert len(errors) == 1, done.stderr
    assert re.fullmatch(r"recon: error: .+: cannot write .+; choose .+", errors[0])
    assert contents(tmp_path) == before


def test_a_full_disk(tmp_path: Path) -> None:
    """A real one: a file system of 64 KiB, seen by the command alone."""
    out = tmp_path / "out"
    out.mkdir()
    case = raw_files.simple(tmp_path / "scan.h5")
    mount = f"mount -t tmpfs -o size=64k none '{out}'"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system (root)")
    run = f"{mount}; '{sys.executable}' -m recon run '{case.path}' -o '{out}' -m rss; echo $?; ls -A '{out}'"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", run], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert done.stdout.split() == ["2"]
    assert done.stderr.count("recon: error: ") == 1
    assert re.search(rf"recon: error: {re.escape(str(out))}: cannot write .*No space left.*; choose", done.stderr)
    assert "Traceback" not in done.stderr


# -- signals ----------------------------------------------------------------------------------------------------------

INTERRUPTIONS = {
    # name: (stage, signal, whom, status, what is said)
    "ctrl-c while reconstructing": ("reconstruct", "SIGINT", "group", 130, "interrupted; nothing half-written"),
    "ctrl-c while writing": ("write", "SIGINT", "group", 130, "interrupted; nothing half-written"),
    "ctrl-c twice while writing": ("write", "SIGINT", "group-twice", 130, "interrupted; nothing half-written"),
    "ctrl-c for the parent alone": ("write", "SIGINT", "parent", 130, "interrupted; nothing half-written"),
    "terminated while reconstructing": ("reconstruct", "SIGTERM", "parent", 143, "ended by SIGTERM; nothing half-written"),
    "terminated while writing": ("write", "SIGTERM", "group", 143, "ended by SIGTERM; nothing half-written"),
    "hung up while writing": ("write", "SIGHUP", "group", 129, "ended by SIGHUP; nothing half-written"),
    "killed while reconstructing": ("reconstruct", "SIGKILL", "child", 2, "the process was killed"),
    "crashed while reconstructing": ("reconstruct", "SIGSEGV", "child", 2, "the process crashed (SIGSEGV)"),
}

INTERRUPT = """
import recon.output.export

def pause(marker):
    def wait(*arguments, **keywords):
        open(marker, "w").write(str(os.getpid()))
        time.sleep(60)
    return wait

def interrupted(folder, scan, stage, name, whom):
    marker, errors = f"{folder}/marker", f"{folder}/errors"
    command = os.fork()
    if command == 0:
        os.setsid()
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        if stage == "write":
            recon.output.png.write_montage = pause(marker)
        else:
            recon.run.pipeline.reconstruct_image = pause(marker)
        sys.argv = ["recon", "run", scan, "-o", f"{folder}/out", "-m", "rss"]
        os._exit(main())
    while not (os.path.exists(marker) and os.path.getsize(marker)):
        time.sleep(0.01)
    number, worker = getattr(signal, name), int(open(marker).read())
    if whom == "child":
        os.kill(worker, number)
    elif whom == "parent":
        os.kill(command, number)
    else:
        os.killpg(command, number)
    if whom == "group-twice":
        os.killpg(command, number)
    start = time.monotonic()
    status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    seconds = time.monotonic() - start
    os.remove(marker)
    text = open(errors).read()
    os.remove(errors)
    return status, text, seconds

for line in json.loads(sys.argv[1]):
    print(json.dumps(interrupted(*line)), flush=True)
"""


def test_interruptions_leave_nothing_behind(tmp_path: Path) -> None:
    cases, befores = [], []
    for i, (stage, name, whom, _, _) in enumerate(INTERRUPTIONS.values()):
        folder = tmp_path / str(i)
        folder.mkdir()
        raw_files.simple(folder / "scan.h5")
        cases.append((str(folder), str(folder / "scan.h5"), stage, name, whom))
        befores.append(contents(folder))
    done = program(INTERRUPT, json.dumps(cases))
    assert done.returncode == 0, done.stderr
    endings = [json.loads(line) for line in done.stdout.splitlines()]
    for i, (what, (_, _, _, expected, said)) in enumerate(INTERRUPTIONS.items()):
        status, text, seconds = endings[i]
        errors = [line for line in text.splitlines() if not line.startswith("recon: warning: ")]
        assert status == expected, what
        assert len(errors) == 1, (what, text)
        assert errors[0].startswith(f"recon: error: {said}"), (what, text)
        assert seconds < WITHIN_S
        assert contents(tmp_path / str(i)) == befores[i], what


# -- damage -----------------------------------------------------------------------------------------------------------


def _bytes(path: Path, seed: int) -> None:
    raw_files.damage(path, seed)


def _few_bytes(path: Path, seed: int) -> None:
    raw_files.damage(path, seed, n_bytes=4)


def _hole(path: Path, seed: int) -> None:
    """A run of zeros, as a copy leaves them that reserved its space and broke off."""
    rng = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    start, length = int(rng.integers(8, len(content))), int(rng.integers(1, 8192))
    content[start : start + length] = bytes(len(content[start : start + length]))
    path.write_bytes(content)


def _cut(path: Path, seed: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(np.random.default_rng(seed).integers(1, len(content)))])


def _heads(path: Path, seed: int) -> None:
    """Single bytes of the readouts' headers."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][:]
        heads = np.ascontiguousarray(rows["head"])
        raw = heads.view(np.uint8).reshape(len(heads), -1)
        for _ in range(4):
            raw[rng.integers(len(raw)), rng.integers(raw.shape[1])] = rng.integers(256)
        rows["head"] = heads
        file["dataset/data"][...] = rows


def _numbers(path: Path, seed: int) -> None:
    """One number of the XML header is another one, or none."""
    rng = np.random.default_rng(seed)
    others = ["0", "-1", "1", "2", "7", "63", "65", "255", "4096", "30000", "65535", "1e5", "2.5", "1e-9", "1e30", "nan", "x"]

    def change(xml: str) -> str:
        numbers = list(re.finditer(r">(-?[\d.]+)<", xml))
        chosen = numbers[int(rng.integers(len(numbers)))]
        return xml[: chosen.start(1)] + str(rng.choice(others)) + xml[chosen.end(1) :]

    set_xml(path, change)


def _characters(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def change(xml: str) -> str:
        characters = list(xml)
        for _ in range(2):
            characters[int(rng.integers(len(xml)))] = str(rng.choice(list("0123456789<>/.-é")))
        return "".join(characters)

    set_xml(path, change)


DAMAGES: list[Callable[[Path, int], None]] = [_bytes, _few_bytes, _hole, _cut, _heads, _numbers, _characters]
SOUND: dict[str, Callable[[Path], Any]] = {
    "simple": raw_files.simple,
    "noisy": raw_files.noisy,
    "accelerated": raw_files.accelerated,
    "counters": raw_files.counters,
    "volume": raw_files.volume,
}


def check_damaged(path: Path, out: Path, recon: Callable[..., Ending], method: str) -> Ending:
    """Either an image, or one line and nothing else."""
    before = path.read_bytes(), path.stat().st_mtime_ns
    ending = recon("run", str(path), "-o", str(out), "-m", method)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    if ending.status == 0:
        assert all(line.startswith("recon: warning: ") for line in ending.stderr.splitlines())
        assert (out / f"{path.stem}.json").exists()
        assert not [p for p in out.iterdir() if p.name.startswith(".")]
        shutil.rmtree(out)
    else:
        one_line(ending, path)
        assert not out.exists()
    assert ending.seconds < WITHIN_S
    assert ending.peak_bytes < ending.idle_bytes + MEMORY
    return ending


def check_many(seeds: range, tmp_path: Path, recon: Callable[..., Ending]) -> list[int]:
    for name, build in SOUND.items():
        build(tmp_path / f"{name}.h5")
    statuses = []
    for seed in seeds:
        name, damage = list(SOUND)[seed % len(SOUND)], DAMAGES[seed % len(DAMAGES)]
        path = tmp_path / f"{seed}-{name}{damage.__name__}.h5"
        shutil.copy(tmp_path / f"{name}.h5", path)
        damage(path, seed)
        statuses.append(check_damaged(path, tmp_path / "out", recon, ("sense", "rss", "zero-filled")[seed % 3]).status)
        path.unlink()
    return statuses


def test_damaged_files(tmp_path: Path, recon: Callable[..., Ending]) -> None:
    assert 2 in check_many(range(14), tmp_path, recon)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_damaged_files(tmp_path: Path, recon: Callable[..., Ending]) -> None:
    statuses = check_many(range(1000, 1350), tmp_path, recon)
    assert {0, 2} == set(statuses)


def test_zeros_within_a_heap_do_not_hang(tmp_path: Path, recon: Callable[..., Ending]) -> None:
    """HDF5 itself goes round for ever where an object of a heap has no size."""
    sound = raw_files.simple(tmp_path / "scan.h5").path.read_bytes()
    heaps = [found.start() for found in re.finditer(b"GCOL", sound)]
    assert len(heaps) > 1
    for start in (heaps[0], heaps[-1]):
        path = tmp_path / f"zeros-{start}.h5"
        path.write_bytes(sound[: start + 16] + bytes(200) + sound[start + 216 :])
        assert "the HDF5 file is damaged" in one_line(recon("run", str(path), "-o", str(tmp_path / "out")), path)
    assert not (tmp_path / "out").exists()
