"""What sequence models do with their context: in-context learning, descent by layer, bits per byte."""
