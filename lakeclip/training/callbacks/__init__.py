"""What is seen of a run while it goes on: curves, speed, memory, scores."""
