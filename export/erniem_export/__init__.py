"""Export ErnieM checkpoints: PyTorch to ONNX, with the numbers proven on the way.

The command line is the interface: ``erniem-export`` and ``erniem-verify``. The models live in
:mod:`erniem_export.modeling`.
"""
