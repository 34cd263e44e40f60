"""Image to tensor and logits to mask, with the image files and the phantoms on either side."""
