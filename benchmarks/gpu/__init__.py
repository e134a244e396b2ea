"""The same benchmark on a GPU; see docs/benchmarks.md."""
