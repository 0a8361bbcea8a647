"""Zero-shot use of a model: scores for prompts, and where it looked."""
