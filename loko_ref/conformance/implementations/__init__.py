"""The implementation under test: Python code, a command in any language, a recording."""
