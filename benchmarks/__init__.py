"""How fast it is, beside what people use: `python -m benchmarks [NAME …] [--quick] [--only TEXT] [--ladder] [--json FILE]`.

Each benchmark is a module: `build(who, case)` makes the call that is timed, in a process of its own for each program (see
`clock`), once its result has been compared with a reference; `run(quick, only)` asks for the times and returns rows of
figures; `goals(rows)` are the rows of the table of aims that these figures answer.
"""
