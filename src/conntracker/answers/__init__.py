"""Answers: what a recording says about a question, as records."""
