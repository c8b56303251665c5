"""What was measured, and the physics: containers, operators, masks, raw data. Imports neither `models` nor `recon`."""
