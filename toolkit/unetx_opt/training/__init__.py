"""Data to checkpoint: data sets, losses, augmentation, and the training loop."""
