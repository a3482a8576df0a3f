r"""The backend for the processor: the kernels of `kernels/__init__.py`, compiled with Numba. This page is the map.

The way from a Python loop to a vector register (zmm, where there is AVX-512), a file at each step:

    ladder.py        a product of matrices in six steps, from three loops in Python to the speed of the machine. Read it first,
                     with the machine code of each step beside it: `python -m benchmarks matmul --asm "i j k"`
    build.py         `@kernel`: what becomes of such a loop. Numba turns it into LLVM's language, LLVM turns the innermost loop
                     into vector instructions, and the machine code is kept on disk. `SUMS`: what sums are allowed
    functions.py     exp, log, tanh, erf, written so that a loop that calls them still becomes vectors
    simd.py          what LLVM does not find by itself: a tile of C in registers, `fma` by `fma`; and addresses, loads, stores
    matmul.py        the tile at work: panels, blocks, edges, threads. With `simd` it holds the way of `x @ w.T` from
                     `kernels.matmul` down to the fused multiply-add; what is above that is in scratchgen/ops/matrix.py

What runs beside the loops:

    threads.py       how many parts the work is cut into            pool.py     who computes them, and when
    jobs.py          a loop on several threads, told all it needs by one record
    memory.py        whose memory an address points to; workspaces that are kept

The kernels, each file with its loop nest, its layout in memory and its numbers explained at the head:

    one element      elementwise.py    activations.py               y_i = f(x_i), and what f' makes of a gradient; dropout is
                                                                    in elementwise.py, rectifiers are in images.py
    a row            rows.py    groups.py    reductions.py          softmax, norms, sums over any dimensions; softmax's
                                                                    gradient is in activations.py
    products         matmul.py
    attention        attention.py chooses among                     attention_forward.py, attention_backward.py (both on
                                                                    attention_blocks.py), attention_few.py (few queries);
                                                                    attention_ladder.py has the steps that lead there
    convolution      convolution.py chooses among                   convolution_loops.py (around the tile; its tables are in
                                                                    convolution_plans.py), windows.py (few channels),
                                                                    winograd.py (3 × 3), depthwise.py (single channels) with
                                                                    depthwise_strips.py (those of stride 1)
    windows          pooling.py                                     the largest and the mean of each window
    pictures         images.py                                      rectifiers, nearest neighbours
    parameters       optimizer.py                                   Adam, norms of gradients

A kernel is called through `kernels/__init__.py`, takes arrays, and hands what it does not cover to `kernels/reference.py`. The
compiled functions below it take arrays where a thread shares out whole rows or elements, or a product its operands (`serial`);
whatever calls the register tile, and every loop on `jobs`, takes addresses and strides in bytes.
"""
