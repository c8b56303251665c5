"""`recon run`: raw file to images."""
