"""Every quantity by its plain formula: the second route that the oracle is held to."""
