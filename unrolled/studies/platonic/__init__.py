"""Studies of the Platonic representation hypothesis."""
