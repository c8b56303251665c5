"""``recon batch``: many raw scans into images, on one machine or a cluster."""

from __future__ import annotations

from pathlib import Path

from recon.batch.options import BatchOptions, ClusterOptions
from recon.run.options import RunOptions


def batch(
    inputs: list[str],
    output: Path | None = None,
    batch: BatchOptions = BatchOptions(),
    cluster: ClusterOptions = ClusterOptions(),
    options: RunOptions = RunOptions(),
) -> int:
    """Reconstruct many raw scans into images. The same command goes on where an earlier one ended, however it ended.

    A scan is done when its JSON record states the same raw file, options, weights and version; others are made again. A scan
    that fails is a row in batch.jsonl and costs no other scan; batch.html shows all of them.

    Parameters
    ----------
    inputs
        Raw files, folders (searched with their subfolders), patterns, lists (.txt with a path a line, .csv with a column
        'path' and perhaps 'output'), or a BIDS data set, whose raw data lie in sourcedata.
    output
        Folder for the results, in which the folders of the inputs are repeated. Default: out, or derivatives/recon of a BIDS
        data set.
    batch
        Which scans, and what to do about faults.
    cluster
        Where the work is done.
    options
        How to reconstruct.

    Returns
    -------
    int
        0 where all scans are done; 4 where some failed.
    """
    # Imported here: --help should not wait for it.
    from recon.batch import run as running

    made = running.prepare(inputs, output, options, batch, cluster)
    if batch.dry_run:
        return running.dry_run(made)
    if batch.status:
        return running.status(made)
    return running.run(made, options.method)
