"""How well the kit itself does: mistakes named, tolerances against right and wrong code."""
