"""The parity gate: is an artifact the PyTorch model, on every kind of input that it will meet?"""
