"""The code under test: Python, a command in any language, a recording."""
