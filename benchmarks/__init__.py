"""``python -m benchmarks`` measures the figures in asynclock's tables."""
