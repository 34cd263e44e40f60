"""The two gates of the attention variant as fused CUDA kernels, with their float64 definition."""
