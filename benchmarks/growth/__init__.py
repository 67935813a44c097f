"""The parts of `bench_growth.py`: the laws, and the process in which one point is measured."""
