"""The expected numbers, computed by the package's own modules."""
