"""Part-based R-CNN: detection of an object and its parts, and a classifier of their features."""
