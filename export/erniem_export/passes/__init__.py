"""Rewrites of the canonical graph, one rule per file, for the engines that run it."""
