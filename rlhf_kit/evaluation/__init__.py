"""What the training did: held-out prompts answered by several policies, judged, and compared."""
