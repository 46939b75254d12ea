"""Golden vectors: cases, expected numbers and their bounds as files, certified by balls."""
