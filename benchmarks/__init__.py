"""How fast it is, beside what people use: `python -m benchmarks [NAME …] [--quick] [--json FILE]`.

Each benchmark is a module with `run(quick) -> list[dict]`: rows of figures. What is timed was first compared with a rival
or a reference, so that nothing wrong is fast.
"""
