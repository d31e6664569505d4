"""Large rulesets in the manner of real ones, and flows to decide; the same for the same seed.

`iptables_dump` is a site's dump as it grew over years, `flat_list` one long chain, `flows` draws packets, half of them
inside the rules. `python bench/rulesets_scale.py dump|acl|wildcard|ranges|overlapping` prints one.
"""

from __future__ import annotations

import argparse

from scale_counters import with_counters
from scale_flat import SHAPES, FlatRule, flat_iptables, flat_list, flat_nft, flat_rules
from scale_flows import Flows, flows
from scale_site import iptables_dump

__all__ = [
    "SHAPES", "FlatRule", "Flows", "flat_iptables", "flat_list", "flat_nft", "flat_rules", "flows", "iptables_dump",
    "with_counters",
]  # fmt: skip


def main() -> None:
    """Prints one."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("what", choices=("dump", *SHAPES))
    options.add_argument("--rules", type=int)
    options.add_argument("--chains", type=int, default=100)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--nft", action="store_true", help="in nft syntax, unless it is the dump")
    options.add_argument(
        "--counters", action="store_true", help="with the counters of packets sent to the kernel; root"
    )
    arguments = options.parse_args()
    if arguments.what == "dump":
        text = iptables_dump(arguments.rules or 5500, arguments.chains, arguments.seed)
    else:
        text = flat_list(arguments.rules or 10_000, arguments.what, arguments.seed)[arguments.nft]
    print(with_counters(text, arguments.seed) if arguments.counters and not arguments.nft else text, end="")


if __name__ == "__main__":
    main()
