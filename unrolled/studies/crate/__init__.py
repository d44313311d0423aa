"""Studies of white-box transformers."""
