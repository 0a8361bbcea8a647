"""Prompts: which texts stand for a class."""
