"""Rulesets in the language of iptables: text to chains with their meanings, and back."""

from conntracker.rules.iptables.detect import detect
from conntracker.rules.iptables.format import format_save
from conntracker.rules.iptables.rule import meaning_of
from conntracker.rules.iptables.save import parse_save

__all__ = ["detect", "format_save", "meaning_of", "parse_save"]
