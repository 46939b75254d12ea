"""Known mistakes of layers and of the network."""
