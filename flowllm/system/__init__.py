"""Files, devices and processes.

- `files`: atomic writes and hashes; `tables`: CSV results;
- `options`: config classes whose fields carry help, unit and check;
- `executors`: work spread over processes, `pools`: where they run, `isolation`: work in a process
  that may crash; `factories`: functions of the user;
- `device`, `extras`, `versions`, `progress`: devices, optional packages, versions, progress bars.
"""
