"""The verbs of the command line, one thin module each. None imports torch before it is called."""
