"""The numbers by which generated crystals are judged, each with its source; one file an idea.

A module here knows structures and arrays; `flowllm.evaluation` reads files and combines them.
"""
