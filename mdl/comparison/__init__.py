"""A table of methods, trained for a list of seeds: what is to run, and how far it is."""
