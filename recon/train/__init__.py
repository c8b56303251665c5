"""The parts of `recon.commands.train`: examples, the Lightning module, what is logged, and what is kept."""
