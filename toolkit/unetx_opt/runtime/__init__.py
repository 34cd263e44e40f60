"""Bundle to masks on this machine: choose an engine, load it, segment. Never needs torch or onnx."""
