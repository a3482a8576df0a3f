r"""How fast it is, beside what people use, and how far from what the machine can do at most.

    python -m benchmarks                             all but cuda: minutes; a table for each, then the table of aims
    python -m benchmarks matmul rows --quick         some of them, with fewer cases and rounds
    python -m benchmarks pieces --only softplus      the cases that have this in their name
    python -m benchmarks matmul --ladder             the steps from the naive loop to the fast kernel (also: attention)
    python -m benchmarks matmul --asm "vector tile"  the machine code of a step's hot loop, its multiply-adds and loads counted
    python -m benchmarks --json FILE                 the figures as JSON, and a picture of them beside it

What is measured, a module each:

    engine       a node of the graph: what Python costs, forward and backward
    matmul       matrix products beside NumPy's BLAS                         ladder: `kernels.cpu.ladder`
    attention    attention, both passes, beside PyTorch's                    ladder: `kernels.cpu.attention_ladder`
    rows         softmax, norms, losses …: the kernels that pass over rows, beside NumPy and PyTorch
    pieces       each op of U-Nets and transformers through the engine, both passes, beside PyTorch
    convolution  convolutions, both passes, beside PyTorch
    steps        whole training steps of models, beside PyTorch and JAX
    critics      steps of a discriminator alone, with penalties on its slope, beside PyTorch and JAX
    startup      import, and the compiling of the kernels
    cuda         the kernels on a GPU, and their ladder: only when named

and what they share:

    clock        how programs are timed fairly: a warm process each, in turns; `Goal`, a row of the table of aims
    machine      the roof: `peak`, products and sums a second, and `bandwidth`, bytes a second, as measured here
    assembly     the machine code of a ladder's step
    chart        pictures: the aims as bars, a ladder under the roof

How to read a row. "× numpy" and "× torch" are ratios: above 1, ours is faster. "% of peak" is a share of `machine.peak`. The
floating-point operations of a case (FLOP: a product and a sum are two) are counted where its benchmark is, from the shapes:
2 m n k for a product of matrices, and so on. "flop/byte" divides them by the bytes of operands and results: below
peak ÷ bandwidth, memory binds, not arithmetic.

Each benchmark is a module: `build(who, case)` makes the call that is timed, in a process of its own for each program, once its
result has been compared with a reference; `run(quick, only)` asks for the times and returns rows of figures; `goals(rows)` are
the rows of the table of aims that these figures answer; `ladder(quick, only)`, where there is one, times its steps.
"""
