"""AdamW with running averages and weights in fewer bits."""
