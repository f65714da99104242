"""`python -m flowllm`."""

from flowllm.cli import main

main()
