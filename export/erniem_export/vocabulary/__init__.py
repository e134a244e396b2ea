"""Prunes the vocabulary to a user's languages, without changing the outputs for texts in them."""
