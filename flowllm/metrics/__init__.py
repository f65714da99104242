"""Metrics of generated crystals, each with its definition and source; one idea per module.

The functions take structures and arrays and return numbers. They read and write no files;
`flowllm.evaluation` reads the data, caches features and combines the metrics.
"""
