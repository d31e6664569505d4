"""Proofs about rulesets, with a SAT solver: what can never match, what changes nothing, and what two of them do alike."""
