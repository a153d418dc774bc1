"""Rounds: several steps from one config, planned, run in order and remembered, so that none is done twice."""
