"""The sides of `bench_ppo.py`, each run in a process and an environment of its own."""
