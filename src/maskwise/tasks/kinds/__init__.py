"""Kinds of tasks; each is one file."""
