"""The inputs that an implementation is run on."""
