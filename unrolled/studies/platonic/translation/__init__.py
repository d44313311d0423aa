"""Translation without pairs."""
