"""The parts of `bench_rollout.py`: what is asked, who answers, a vLLM server for the time of the benchmark."""
