"""Recordings: what one run saw, kept on disk, and questions to it."""
