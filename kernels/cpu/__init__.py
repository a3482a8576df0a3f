"""The second storey: the same doors as `reference.py`, compiled for the processor with Numba."""
