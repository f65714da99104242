"""Files, devices, versions and processes."""
