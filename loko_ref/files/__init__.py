"""Files: read and written whole or not at all, in formats that cannot hide code."""
