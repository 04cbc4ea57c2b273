"""Replacements for parts of Hugging Face's Trainer."""
