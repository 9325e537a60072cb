"""The experiments: `python -m lae_fast.experiments` for the report, and `lae_fast.experiments.toys`."""
