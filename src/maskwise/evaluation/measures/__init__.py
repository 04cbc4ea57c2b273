"""Measures of a model without fine-tuning; each is one file."""
