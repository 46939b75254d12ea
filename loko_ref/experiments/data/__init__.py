"""Data sets: bundled ones, image files, GLUE files and texts, found by name."""
