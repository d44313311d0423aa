"""The documentation site: `python -m website` puts its pages together, builds them and checks every link."""
