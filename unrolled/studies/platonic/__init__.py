"""Studies of the Platonic representation hypothesis, and what several of them share."""
