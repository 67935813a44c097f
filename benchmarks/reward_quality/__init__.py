"""What `bench_reward_quality.py` is made of: the data, a trainer a module, the budget, the figures.

`kit` and `peer` run in processes of their own. `peer` and all that it imports need torch, transformers, peft and TRL
only, so its interpreter may be one without the kit.
"""
