"""The kernels for arrays in a GPU's memory, with Numba CUDA. The map of this folder.

How a call gets here: `kernels.softmax(x)` (kernels/__init__.py) calls `backend_of(x).rows.softmax(x)`, which for an array on a
device is `softmax` of rows.py in this folder. That function, on the host, checks and arranges the arrays, and starts a kernel:
`launch(softmax_rows, blocks, x, y)`. Then every thread of every block runs `softmax_rows`, at once or in any order. What each
kernel means, and its shapes, is said in kernels/__init__.py alone.

In this order the folder can be read:

    build.py          how a kernel is declared, with its budget of registers and shared memory, and launched
    maps.py           the simplest kernels, a thread for each element: so are activations.py, elementwise.py, optimizer.py
    sums.py           how the threads of a block add up, with an error that does not grow with the count
    rows.py           softmax, norms, sums of rows, tables; groups.py norms of groups of channels
    matmul.py         products, as a ladder from three loops to the tensor cores
    convolution.py    convolutions, as products of columns; images.py resampling
    attention.py      attention without its matrix

Numbers are float32, for which the kernels are written. Other types, empty arrays and rare options are left to the reference,
whose NumPy functions the library of the arrays carries out on the device, by NumPy's protocols (`__array_ufunc__`,
`__array_function__`). So are the two kernels without a twin here: `einsum`, and `sum_over`, which adds in float64.

No module of this folder knows of CuPy: new arrays, orders and sums of few numbers are asked of the arrays themselves, by the
same protocols. So all of it runs on NumPy's arrays, too, where something else launches the kernels: the tests do that, with an
emulator (tests/cuda_emulator.py).

To add the twin of a kernel, write one function in one file: the function with the kernel's name and signature, in the module
that `kernels/__init__.py` names, and beside it what it launches, under `@kernel` with its types and budget. The tests then ask
for its cases, compare them with the reference, thread by thread, and compile it for three architectures.
"""
