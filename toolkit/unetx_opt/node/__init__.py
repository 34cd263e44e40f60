"""The DICOM node: receives images, has them segmented, sends the results on, and loses nothing on the way."""
