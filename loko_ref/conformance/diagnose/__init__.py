"""Which known mistake reproduces what came back."""
