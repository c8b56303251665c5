"""The parts of `recon.train`: examples, the Lightning module, what is logged, and what is kept."""
