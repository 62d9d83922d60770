"""Faults that tests inject between real programs."""
