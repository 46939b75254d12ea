"""Checks at the public edge: arguments of functions, values, fields of files."""
