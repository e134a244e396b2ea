"""The gate: compares an artifact's outputs, weights and answers to a task set with those of the PyTorch model."""
