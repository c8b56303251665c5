"""How far the evidence with generated images can be trusted: the measurements of docs/TRUST.md.

    python -m benchmarks.trust detect   --volumes TEST                # planted hallucinations, false alarms
    python -m benchmarks.trust coverage --volumes TEST                # of the interval, simulated test volumes
    python -m benchmarks.trust loss     --volumes TEST                # tumours in boxes, and synthetic lesions
    python -m benchmarks.trust outside  --volumes TEST --data FOLDER  # scans, masks, coils, noise and maps from elsewhere
    python -m benchmarks.trust perturb  --volumes TEST                # gradient ascent at the noise level
    python -m benchmarks.trust cost                                   # recon run with and without evidence
    python -m benchmarks.trust leak     --volumes TEST                # samples that were not acquired

TEST are volumes that nothing was trained or calibrated on; ``--data`` (default: $RECON_DATA) is a folder with
``fastmri_style``. ``--system`` names the generator (refinegan), ``--weights`` a file in place of the bundled one.
"""
