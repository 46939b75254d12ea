"""How large an error may be, and which quantity exceeds it first."""
