"""What people look at: a step explained, learning curves drawn."""
