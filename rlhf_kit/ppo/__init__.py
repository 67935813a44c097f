"""PPO with adapters on one base: the trainer, usable without a recipe, and its parts.

One update, in the order of the data: `prompts` are sampled from and judged by `experience`, with `reward_sources`; what
comes of it, `batches.Episodes`, is learned from by `learning`; `trainer` drives it on transformers' Trainer, and
`checkpoints` and `heldout` are what happens between two updates. `roles` says which weights play what.
"""
