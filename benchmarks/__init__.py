"""Measurements behind every figure in the documentation; each runs as `python -m benchmarks.<name>`."""
