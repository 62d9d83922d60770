"""The science, checked against mathematics: `python -m tests.science`."""
