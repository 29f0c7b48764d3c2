"""The same numbers sooner: results depend on nothing in here, but for rounding.

On a GPU the random masks of dropout are others too."""
