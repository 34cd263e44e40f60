"""ONNX Runtime engines: the ONNX file itself, and the proof of what it computes in."""
