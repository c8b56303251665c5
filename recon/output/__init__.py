"""Image export: MRD, DICOM, NIfTI, PNG and the JSON record."""
