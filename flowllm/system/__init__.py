"""Files, devices, processes, options and versions."""
