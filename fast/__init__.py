"""The same numbers sooner: results depend on nothing in here, but for rounding."""
