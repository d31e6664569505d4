"""The kernel as an oracle: what it does with a packet under a ruleset, step by step.

Oracle makes a host in a network namespace of its own: `load` gives it rules, `send` sends packets to it, through it and
from it, and tells the steps of each as the product's traces have them.
"""

from conntracker.lab.oracle.session import LoadRefused, Oracle, Seen
from conntracker.lab.oracle.wanted import Unsendable

__all__ = ["LoadRefused", "Oracle", "Seen", "Unsendable"]
