"""DICOM files in and, for what the segmentation found, DICOM objects out."""
