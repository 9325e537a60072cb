"""What is measured, a subject in a file; `registry.py` lists all of it."""
