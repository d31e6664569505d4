"""Rulesets of nf_tables: libnftables' JSON in, the common model out, and back as nft's own syntax. Pure."""

from __future__ import annotations

from conntracker.rules.nft.document import parse_json
from conntracker.rules.nft.formats import format_json, format_nft

__all__ = ["format_json", "format_nft", "parse_json"]
