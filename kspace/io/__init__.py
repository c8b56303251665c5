"""File formats: ISMRMRD, fastMRI-style HDF5, Siemens twix, images; HDF5 errors and atomic writes."""
