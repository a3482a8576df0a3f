"""The third storey: the doors of `reference.py` on arrays in a GPU's memory, as Numba CUDA kernels.

Numbers are float32: that is what the kernels are written for. Other types, empty arrays and the rare case that a door leaves
out go to compositions of the reference or of other doors, on the device as well.

No kernel knows of CuPy: what a door needs besides kernels (a new array, a sum over partial sums, an order) it asks of the
arrays it was given, through NumPy's protocols. So the doors run on NumPy arrays too, where something else launches the
kernels: the tests do that, with an emulator (tests/cuda_emulator.py).
"""
