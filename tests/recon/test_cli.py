from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recon import cli
from tests.conftest import ROOT


def shell(*arguments: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    command = [sys.executable, "-m", "recon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False, **keywords)


ENDINGS = [
    ("input", 2, "recon: error: scan.h5: 12 channels came, 14 were expected; copy it again"),
    ("interrupt", 130, "recon: error: interrupted"),
    ("import", 143, "recon: error: ended by SIGTERM"),
    ("memory", 2, "recon: error: out of memory (Unable to allocate 3 TiB); take a part with --slices"),
    ("torch-memory", 2, "recon: error: out of memory ([enforce fail"),
    ("bug", 1, "recon: error: unexpected ZeroDivisionError: division by zero; this is a defect of recon"),
    ("SIGSEGV", 2, "recon: error: the process crashed (SIGSEGV): an input file is probably damaged"),
    ("SIGABRT", 2, "recon: error: the process crashed (SIGABRT)"),
    ("SIGKILL", 2, "recon: error: the process was killed"),
    ("status", 2, ""),
]


@pytest.mark.parametrize(("how", "status", "line"), ENDINGS, ids=[e[0] for e in ENDINGS])
def test_every_ending_is_one_line_and_a_status(how: str, status: int, line: str) -> None:
    program = (
        "import sys; from recon import cli;"
        "cli.COMMANDS['crash'] = cli.Command('tests.support.failing:crash', 'end badly', ('how',));"
        f"sys.argv = ['recon', 'crash', {how!r}]; sys.exit(cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == status
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == (1 if line else 0)
    assert "Traceback" not in done.stderr


def test_help_lists_every_command() -> None:
    done = shell("--help")
    assert done.returncode == 0
    for name, command in cli.COMMANDS.items():
        assert name in done.stdout
        assert command.summary.split()[0] in done.stdout


@pytest.mark.parametrize("name", [name for name, command in cli.COMMANDS.items() if not command.raw])
def test_help_of_each_command_explains_every_option(name: str) -> None:
    command = cli.COMMANDS[name]
    for parameter in cli._flat_parameters(cli._load(command)):
        assert len(parameter.help) > 10, f"recon {name}: {parameter.name} has no help"
    cli._subparser(command)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "recon: error: no command was given; recon --help lists them"),
        (["reconstruct"], "recon: error: unknown command 'reconstruct'; the commands are: run, info"),
        (["mask"], "recon: error: the following arguments are required: mask.spec"),
        (["mask", "random1d:4", "--shape", "8", "8", "--colour", "red"], "recon: error: unrecognized arguments: --colour"),
        (["mask", "random1d:4", "--shape", "8", "x"], "recon: error: --shape: 'x' is no such value; give a whole number"),
        (["run", "scan.h5", "--adapt", "nan"], "recon: error: --adapt: 'nan' is no such value; give a number"),
        (
            ["run", "scan.h5", "--refine", "magic"],
            "recon: error: --refine: 'magic' is none of the choices; choose from stack, residual, none",
        ),
        (
            ["run", "scan.h5", "--precision", "fp8"],
            "recon: error: --precision: 'fp8' is none of the choices; choose from auto, fp32, bf16",
        ),
    ],
)
def test_wrong_words_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.count("\n") == 1


@dataclass(frozen=True)
class Group:
    """Options.

    Attributes
    ----------
    lamda
        The weight of something.
    virtual_coils
        How many of something.
    """

    lamda: float = 1.0
    virtual_coils: int | None = None


calls: list[tuple[Any, ...]] = []


def command(inputs: list[Path], shape: tuple[int, int] = (1, 2), options: Group = Group(), force: bool = False) -> int:
    """Do nothing.

    Parameters
    ----------
    inputs
        Some files.
    shape
        Some shape.
    options
        A group.
    force
        A flag.
    """
    calls.append((inputs, shape, options, force))
    return 0


def test_options_come_from_signature_line_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = cli.Command(f"{__name__}:command", "do nothing", ("inputs",), (("force", "-f"),))
    monkeypatch.setitem(cli.COMMANDS, "nothing", entry)
    config = tmp_path / "config.yaml"
    config.write_text("lamda: 1e-5\nforce: true\n")  # plain YAML reads 1e-5 as text
    calls.clear()
    assert cli.execute(["nothing", "a", "b", "--virtual-coils", "8", "-f", "--shape", "3", "4"]) == 0
    assert cli.execute(["nothing", "--config", str(config), "a"]) == 0
    assert calls == [
        ([Path("a"), Path("b")], (3, 4), Group(1.0, 8), True),
        ([Path("a")], (1, 2), Group(1e-5, None), True),
    ]
    config.write_text("lambda: 1e-5\n")
    assert cli.execute(["nothing", "--config", str(config), "a"]) == 2
    assert "does not accept option 'lambda'" in capsys.readouterr().err
