"""The parts of ``recon compare``: what is compared, how it is measured, what follows from it, and the folder that keeps it."""
