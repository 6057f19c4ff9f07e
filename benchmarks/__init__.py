"""The figures of asynclock's tables, measured: ``python -m benchmarks``."""
