"""Rulesets as text, made into records: pure, no I/O."""
