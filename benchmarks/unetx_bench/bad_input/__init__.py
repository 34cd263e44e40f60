"""Bad input on purpose: a corpus of damaged and hostile DICOM files, and what the reader makes of each."""
