"""A step of LoKO explained: every quantity with its equation, label and numbers."""
