"""The image viewer of the pages that `recon` writes: how images are stored in a page, which fit, its scripts and styles."""
