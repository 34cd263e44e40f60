"""Graphs and engines: from a PyTorch module to what each target runs, and the proof that it is what was asked."""
