"""Checkpoint to torch module: the table of variants, their blocks, and safe checkpoint files."""
