"""Studies of mesa-optimisation."""
