"""Experiments: each file makes its figures or its table with one command."""
