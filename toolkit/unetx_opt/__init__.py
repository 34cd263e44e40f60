"""Turns a trained chest-radiograph U-Net into verified engines, and runs them on the workstation."""

__version__ = "0.1.0"
