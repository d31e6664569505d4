"""Proofs about rulesets, with a SAT solver: what never matches, what changes nothing, what two of them do alike."""
