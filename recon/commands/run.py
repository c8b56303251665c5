"""``recon run``: raw scans into images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kspace.errors import InputError
from recon.evidence.record import ImageEvidence
from recon.run.options import RunOptions


def run(inputs: list[Path], output: Path = Path("out"), options: RunOptions = RunOptions()) -> int:
    """Reconstruct raw scans into images.

    Parameters
    ----------
    inputs
        Raw files: ISMRMRD HDF5, fastMRI HDF5, or Siemens twix (.dat). They are opened read-only.
    output
        Folder for the results; each input gives files under its own stem.
    options
        How to reconstruct.

    Returns
    -------
    int
        0, or 2 where an input could not be reconstructed; the others are. With --strict, 3 where a classical image was
        delivered in place of a generator's.
    """
    # Imported here: --help should not wait for torch.
    from recon.run.pipeline import reconstruct_file

    _refuse_equal_stems(inputs)
    if options.save_weights is not None and len(inputs) > 1:
        raise InputError(f"{len(inputs)} scans would write one file", "--save-weights", "adapt to one scan at a time")
    failed = 0
    fallbacks: list[ImageEvidence] = []
    for path in inputs:
        try:
            written = reconstruct_file(path, output, options, fallbacks)
        except InputError as error:
            if len(inputs) == 1:
                raise
            # One bad file of many must not cost the others: it is named, and the exit status remembers it.
            print(f"recon: error: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        print("\n".join(str(p) for p in written))
    return 2 if failed else 3 if fallbacks and options.strict else 0


def _refuse_equal_stems(inputs: Sequence[Path]) -> None:
    stems: dict[str, Path] = {}
    for path in inputs:
        if path.stem in stems:
            raise InputError(
                f"{stems[path.stem]} and {path} would write the same files", "the inputs", "run them with different -o"
            )
        stems[path.stem] = path
