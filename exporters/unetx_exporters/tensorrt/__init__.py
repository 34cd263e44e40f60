"""Engines for NVIDIA GPUs: TensorRT and TensorRT-RTX by one builder, in a process of its own."""
