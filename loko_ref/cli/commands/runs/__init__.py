"""The commands that train: a stream, and parallel heads."""
