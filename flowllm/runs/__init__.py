"""Run folders: long jobs that survive a kill, and the files that they publish.

- `identity`: a folder belongs to one run and one process at a time;
- `sharded`: resumable jobs in shards, `parts`: those that several machines share;
- `records`: the record of one crystal; `outputs`: parquet, extxyz, CIF and trajectories of a run,
  `cif_form`: the form of its CIFs.
"""
