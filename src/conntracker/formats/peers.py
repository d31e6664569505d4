"""Who a side of flows talks to, in few words and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from conntracker.formats.table import printable
from conntracker.recording.sides import SERVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conntracker.recording.sides import Peer, Peers

__all__ = ["peers_json", "peers_text"]


def peers_json(peers: Peers) -> str:
    """All of them as a list of objects with the keys of Peer."""
    return json.dumps([peer._asdict() for peer in peers.first])


def peers_text(peers: Peers, room: int) -> str:
    """As many of the peers, the first ones first, as there is room for, at least one; then how many more there are.

    '93.184.216.34:443, postgres (127.0.0.1:5432) +12'; for a server who came, by service: ':22 from 10.0.0.5 +3'.
    """
    text = _text(peers.first[:1], peers.total)
    for number in range(2, len(peers.first) + 1):
        longer = _text(peers.first[:number], peers.total)
        if len(longer) <= room:
            text = longer
        elif len(longer) > room + len(f" +{peers.total}"):  # with the last one that number goes away
            break
    return text


def _text(peers: Sequence[Peer], count: int) -> str:
    """Clients' peers together, servers' by service, in the order of the first of each."""
    parts: dict[str | None, dict[str, None]] = {}
    for peer in peers:
        end = peer.address if peer.port is None or peer.role == SERVER else _with_port(peer.address, peer.port)
        name = end if peer.process is None else f"{peer.process} ({end})"
        service = (f":{peer.port} " if peer.port is not None else f"{peer.proto} ") if peer.role == SERVER else None
        parts.setdefault(service, {})[name] = None
    texts = (("" if service is None else f"{service}from ") + ", ".join(names) for service, names in parts.items())
    more = count - len(peers)
    return printable("; ".join(texts)) + (f" +{more}" if more else "")


def _with_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
