"""`recon batch`: many scans on one machine or a cluster, resumable."""
