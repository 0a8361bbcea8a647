"""The stages of `benchmarks/gpu_suite.py`, one module each."""
