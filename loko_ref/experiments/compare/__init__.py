"""Comparisons: LoKO with first-order optimizers on many streams, LTE with full training."""
