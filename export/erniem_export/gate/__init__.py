"""The gate: is an artifact the PyTorch model, in its numbers, its weights and its answers to a task set?"""
