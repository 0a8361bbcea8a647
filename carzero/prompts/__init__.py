"""Prompts: which texts stand for a class, and how a report becomes such texts."""

from carzero.prompts.benchmarks import BENCHMARKS, prompt_set
from carzero.prompts.sets import TEMPLATE, PromptSet, load_prompts

__all__ = ["BENCHMARKS", "TEMPLATE", "PromptSet", "load_prompts", "prompt_set"]
