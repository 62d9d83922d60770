"""Statistics of curves and observations: pure functions on arrays, every estimate with its interval."""
