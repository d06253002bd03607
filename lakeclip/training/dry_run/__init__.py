"""What a run is going to be, before it is begun."""
