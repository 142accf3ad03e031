"""The figures of docs/benchmarks.md, one module each; `body3d bench NAME` prints them."""
