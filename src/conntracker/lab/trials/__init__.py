"""Trying the engine: rulesets made at random, packets on their borders, and the engine's steps beside the kernel's."""
