"""Builds TensorRT plans from exported graphs, with TensorRT 10 or 11 or TensorRT for RTX."""
