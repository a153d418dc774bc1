"""Labelling data sets: writers that resume after any crash, and the driver that runs a method over a data set."""
