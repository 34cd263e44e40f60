"""What a segmentation found, as DICOM objects beside its source: SEG, Secondary Capture, GSPS and SR."""
