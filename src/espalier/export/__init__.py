"""Compressed networks for other programs: ONNX and Core ML."""
