"""`recon serve`: the MRD streaming server for scanners."""
