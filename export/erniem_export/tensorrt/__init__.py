"""From an exported graph to a TensorRT plan: TensorRT 10 and 11, and TensorRT for RTX."""
