"""From image files to pixels: JPEG, PNG and DICOM become (256, 256) uint8."""
