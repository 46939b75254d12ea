"""Files: read and written whole or not at all, in formats that cannot contain code."""
