"""The operations that an implementation may offer, as data."""
