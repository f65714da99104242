"""Files, devices and processes.

- `files`: atomic writes and hashes; `tables`: CSV results;
- `options`: config classes whose fields carry help, unit and check;
- `executors`, `isolation`: work spread over processes, and work in a process that may crash;
- `device`, `extras`, `versions`, `progress`: devices, optional packages, versions, progress bars.
"""
