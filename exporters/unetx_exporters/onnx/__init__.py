"""Torch module to ONNX graph: tracing, precision, verification and the count of its operations."""
