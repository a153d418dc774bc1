"""Labelling data sets: writers that go on after any crash, and the driver that runs a method over a data set."""
