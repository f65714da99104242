"""Report of an evaluation: one HTML page that opens without network."""

from flowllm.evaluation.report.build import write_report

__all__ = ["write_report"]
