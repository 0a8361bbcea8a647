"""Images, DICOM files, manifests and drawn radiographs."""
