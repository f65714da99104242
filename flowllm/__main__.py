"""`python -m flowllm`: the command line."""

from __future__ import annotations

from flowllm.cli import main

main()
