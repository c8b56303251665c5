"""``recon replay``: repeat a run from its record."""

from __future__ import annotations

from pathlib import Path

EXIT_DIFFERENT = 3
EXIT_CHANGED = 4
NAMED = 10  # images that are named one by one


def replay(record: Path, output: Path | None = None, raw: Path | None = None) -> int:
    """Repeat the run of a JSON record and compare its pixels bit for bit.

    Equal pixels need the same device type, versions and instruction set; what differs is named. Exit status: 0 all pixels are
    equal; 3 some are not; 4 an input (raw file, weights, coil maps, noise scan, configuration) is not that of the record, and
    nothing was reconstructed; 2 the record cannot be used, or a file that it names is gone.

    Parameters
    ----------
    record
        JSON record of recon run, such as out/scan.json. The files that it names are only read.
    output
        Folder for the images of the repetition, in the formats of the record. Nothing is overwritten. Default: no output.
    raw
        The raw file, where it was moved. Default: as recorded, else of the same name beside the record.

    Returns
    -------
    int
        Exit status.
    """
    # Imported here: --help should not wait for torch.
    from recon.run.replay import changed_inputs, options_of, other_software, read_record, reproduce

    recorded = read_record(record)
    path, options = options_of(recorded, raw)
    if changed := changed_inputs(recorded, path, options):
        print("\n".join(changed))
        print("nothing was reconstructed: with other inputs the pixels cannot be compared")
        return EXIT_CHANGED
    print(f"inputs: as recorded ({', '.join(str(one['what']) for one in recorded.inputs)}, configuration)")
    differing = other_software(recorded)
    print("\n".join(differing) if differing else "software and instruction set: as recorded")
    replayed = reproduce(recorded, path, options, output)
    if replayed.written:
        print("\n".join(map(str, replayed.written)))
    n = len(recorded.pixels)
    if not replayed.different:
        print(f"pixels: {n} of {n} images are equal, bit for bit")
        return 0
    print("\n".join(replayed.different[:NAMED]))
    why = "; the software differs, see above" if differing else ""
    print(f"pixels: {replayed.n_equal} of {n} images are equal, {len(replayed.different)} are not{why}")
    return EXIT_DIFFERENT
