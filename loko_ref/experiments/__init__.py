"""Training on real data: data sets, base networks, streams, LTE runs, checkpoints."""
