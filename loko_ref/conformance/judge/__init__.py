"""How large an error may be, and where a result goes beyond it first."""
