"""What a verification prints and writes."""
