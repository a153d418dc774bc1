"""Masks: run lengths, pasting, merging, confidence, label maps. Pure functions on tensors and arrays."""
