"""The two sides of `bench_reward.py`, each run in a process and an environment of its own."""
