"""LTE on real data: set-up, training, checkpoints, diagnostics and the report of a run."""
