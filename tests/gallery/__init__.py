"""Phenomena of the field, each with a sweep and a check that can fail: `python -m tests.gallery`."""
