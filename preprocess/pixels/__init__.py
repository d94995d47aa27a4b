"""Load image files as pixels: JPEG, PNG and DICOM become (256, 256) uint8."""
