"""The benchmark of the project: what is measured, and how, stands in docs/benchmarks.md.

Nothing here imports qlog: the broker is driven over its socket by a client of the benchmark's own,
so that an error in the product's codec cannot hide itself in its figures.
"""
