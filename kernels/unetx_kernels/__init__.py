"""CUDA sources of the fused operations, each beside its launcher and its float64 reference."""
