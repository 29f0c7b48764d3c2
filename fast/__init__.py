"""The same numbers sooner: results do not depend on anything in here."""
