"""Flows as text. Plain callables."""
