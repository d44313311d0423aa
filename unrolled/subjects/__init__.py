"""What is looked at: a model by one string, the samples it is shown, and its features of them."""
