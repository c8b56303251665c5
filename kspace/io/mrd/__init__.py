"""ISMRMRD files: raw scans and noise in, images out. The one place that knows their format."""

from kspace.io.mrd.header import Encoding
from kspace.io.mrd.read import MrdScan, open_scan, read_noise

__all__ = ["Encoding", "MrdScan", "open_scan", "read_noise"]
