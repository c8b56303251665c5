"""Networks of other packages with weights from a local file, as reconstructors on our masks and coil maps."""
