"""The search for the formula that gives what came back."""
