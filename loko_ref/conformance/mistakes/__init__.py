"""The known mistakes, by topic, and how well they are found."""
