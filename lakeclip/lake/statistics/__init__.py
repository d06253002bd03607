"""What is in a lake: figures over its rows, and rows to look at."""
