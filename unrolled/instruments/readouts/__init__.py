"""What can be read out of frozen features, and how far a prediction can be relied on."""
