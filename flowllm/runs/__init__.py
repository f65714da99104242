"""Run folders: long jobs that survive a kill, and the files that they publish."""
