"""Compares ErnieM engines on the same work, each in its own process, and writes the results as JSON."""
