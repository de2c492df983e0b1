"""How good edits are, where the truth is known: suites of rendered videos, measures, tables and pictures."""
