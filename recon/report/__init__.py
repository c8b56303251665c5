"""The parts of the report of `recon compare`: what is read, how images are stored in the page, figures, the page."""
