"""The dump of a large site that grew over years: VLANs, MAC addresses, services, logging, NAT, and rules left dead."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from scale_words import PORTS, net_text, prefix


class _Site:
    """Makes the rules of one site. Hosts of VLAN n are in 10.n.0.0/16, behind the interface eth1.n."""

    def __init__(self, rules: int, chains: int, seed: int) -> None:
        self.rng = Random(seed)  # noqa: S311
        self.far = [self.rng.randrange(0x0B00, 0x7F00) << 16 for _ in range(40)]
        self.vlans = list(range(10, 10 + max(1, (chains - 6) // 5)))
        self.hosts = {vlan: sorted(self.rng.sample(range(10, 2500), min(2400, rules))) for vlan in self.vlans}
        self.host_chains = [f"host_{i}" for i in range(chains - 6 - 3 * len(self.vlans))]
        self.lines: dict[str, list[str]] = {
            name: [] for name in (
                "INPUT", "FORWARD", "OUTPUT", "log_drop", "log_reject", "bad_flags", "icmp", "services", "blocked",
                *(f"{kind}_{vlan}" for kind in ("mac", "from", "to") for vlan in self.vlans), *self.host_chains,
            )
        }  # fmt: skip

    def add(self, chain: str, text: str) -> None:
        self.lines[chain].append(f"-A {chain} {text}")

    def host(self, vlan: int) -> str:
        """One of the first hosts of a VLAN: the same ones are named again and again."""
        number = self.hosts[vlan][min(int(self.rng.expovariate(1 / 80)), 2399, len(self.hosts[vlan]) - 1)]
        return f"10.{vlan}.{number >> 8}.{number & 255}/32"

    def outside(self, lengths: tuple[int, ...] = (16, 20, 24, 24, 28, 32, 32)) -> str:
        """A network or host far away."""
        return net_text(*prefix(self.rng.choice(self.far) + self.rng.getrandbits(16), self.rng.choice(lengths)))

    def vlan(self) -> int:
        return self.rng.choice(self.vlans)

    def service(self) -> str:
        """A protocol with ports."""
        rng, protocol = self.rng, self.rng.choices(("tcp", "udp"), (4, 1))[0]
        kind = rng.random()
        if kind < 0.3:
            ports = ",".join(str(port) for port in sorted(rng.sample(PORTS, rng.randrange(2, 8))))
            return f"-p {protocol} -m multiport --dports {ports}"
        if kind < 0.38:
            low = rng.randrange(1024, 60000)
            return f"-p {protocol} -m {protocol} --dport {low}:{low + rng.choice((10, 99, 1000))}"
        if kind < 0.42:
            return f"-p {protocol} -m {protocol} --sport 1024:65535 --dport {rng.choice(PORTS)}"
        return f"-p {protocol} -m {protocol} --dport {rng.choice(PORTS)}"

    def state(self) -> str:
        """`--state`, mostly of packets that begin something."""
        which = self.rng.choices(("NEW", "NEW,ESTABLISHED", "RELATED,ESTABLISHED", "INVALID"), (30, 6, 2, 1))[0]
        return f"-m state --state {which}"

    def target(self) -> str:
        """What to do with a packet."""
        targets = ("ACCEPT", "DROP", "log_drop", "log_reject", "RETURN", "REJECT --reject-with icmp-port-unreachable")
        return "-j " + self.rng.choices(targets, (14, 2, 2, 1, 3, 1))[0]

    def base(self) -> None:
        """The base chains, and the small chains that all use."""
        for chain in ("INPUT", "FORWARD"):
            self.add(chain, "-m state --state RELATED,ESTABLISHED -j ACCEPT")
            self.add(chain, "-m state --state INVALID -j log_drop")
            self.add(chain, "-j blocked")
            self.add(chain, "-p tcp -j bad_flags")
            self.add(chain, "-p icmp -j icmp")
        self.lines["INPUT"].insert(0, "-A INPUT -i lo -j ACCEPT")
        for vlan in self.vlans:
            self.add("INPUT", f"-i eth1.{vlan} -j mac_{vlan}")
            self.add("FORWARD", f"-i eth1.{vlan} -j mac_{vlan}")
        for vlan in self.vlans:
            self.add("FORWARD", f"-i eth1.{vlan} -j from_{vlan}")
            self.add("FORWARD", f"-o eth1.{vlan} -j to_{vlan}")
        self.add("INPUT", "-i eth1.+ -j services")
        seen = "-m recent --set --name ssh --mask 255.255.255.255 --rsource"
        self.add("INPUT", f"-i eth0 -p tcp -m tcp --dport 22 -m state --state NEW {seen}")
        self.add("INPUT", "-i eth0 -p tcp -m tcp --dport 22 -j ACCEPT")
        self.add("FORWARD", "-i eth0 -j log_drop")
        self.add("FORWARD", "-i eth1.+ -o eth0 -j ACCEPT")
        self.add("OUTPUT", "-o lo -j ACCEPT")
        self.add("OUTPUT", "-m state --state NEW,RELATED,ESTABLISHED -j ACCEPT")
        for chain, end in (("log_drop", "DROP"), ("log_reject", "REJECT --reject-with icmp-admin-prohibited")):
            self.add(chain, f'-m limit --limit 10/min --limit-burst 20 -j LOG --log-prefix "{chain}: " --log-level 6')
            self.add(chain, f"-j {end}")
        for flags in ("FIN,SYN FIN,SYN", "SYN,RST SYN,RST", "FIN,SYN,RST,PSH,ACK,URG NONE", "FIN,ACK FIN"):
            self.add("bad_flags", f"-p tcp -m tcp --tcp-flags {flags} -j log_drop")
        for kind in (3, 11, 12, 8):
            self.add("icmp", f"-p icmp -m icmp --icmp-type {kind} -j ACCEPT")
        self.add("icmp", "-p icmp -j RETURN")

    def mac(self, rules: int) -> None:
        """The known hosts of each VLAN: address and MAC address together, all else is dropped."""
        share = max(2, rules // len(self.vlans))
        for vlan in self.vlans:
            for number in self.hosts[vlan][: share - 2]:
                mac = ":".join(
                    f"{byte:02x}" for byte in (2, 0, vlan, number >> 8, number & 255, self.rng.randrange(256))
                )
                self.add(
                    f"mac_{vlan}", f"-s 10.{vlan}.{number >> 8}.{number & 255}/32 -m mac --mac-source {mac} -j RETURN"
                )
            self.add(f"mac_{vlan}", "-s 0.0.0.0/32 -p udp -m udp --sport 68 --dport 67 -j RETURN")
            self.add(f"mac_{vlan}", "-j log_drop")

    def to(self, vlan: int, rules: int) -> None:
        """What may go to the hosts of a VLAN, with rules said twice, too late, or for another interface."""
        chain, rng = f"to_{vlan}", self.rng
        while len(self.lines[chain]) < rules - 1:
            careless = rng.random()
            if careless < 0.04 and self.lines[chain]:
                self.lines[chain].append(rng.choice(self.lines[chain]))
            elif careless < 0.06:
                self.add(chain, f"-d {self.host(vlan)} -o eth1.{self.vlan()} {self.service()} {self.target()}")
            elif careless < 0.065:
                self.add(chain, f"-d {self.host(vlan)} {self.target()}")
            elif careless < 0.40:
                self.add(
                    chain, f"-s {self.outside()} -d {self.host(vlan)} {self.service()} {self.state()} {self.target()}"
                )
            elif careless < 0.50:
                self.add(
                    chain,
                    f"-s {self.host(self.vlan())} -d {self.host(vlan)} -i eth1.+ {self.service()} {self.target()}",
                )
            else:
                self.add(chain, f"-d {self.host(vlan)} {self.service()} {self.state()} {self.target()}")
        self.add(chain, "-j log_drop")

    def host_rules(self, chain: str, rules: int) -> None:
        """A chain of one host, entered by its address."""
        vlan = self.vlan()
        address = self.host(vlan)
        self.lines[f"to_{vlan}"].insert(0, f"-A to_{vlan} -d {address} -j {chain}")
        for _ in range(max(0, rules - 2)):
            source = f"-s {self.outside()} " if self.rng.random() < 0.6 else ""
            self.add(chain, f"{source}{self.service()} {self.state()} {self.target()}")
        self.add(chain, self.rng.choice(("-j RETURN", "-j DROP")))

    def fill(self, rules: int) -> None:
        """About so many rules, spread as in real dumps."""
        self.base()
        rest = rules - sum(map(len, self.lines.values()))
        self.mac(rest * 3 // 10)
        for _ in range(rest // 20):
            self.add(
                "blocked",
                f"-s {self.outside((20, 24, 28, 32, 32, 32))} -j {self.rng.choice(('DROP', 'DROP', 'log_drop'))}",
            )
        for _ in range(rest // 50):
            self.add("services", f"-s {self.host(self.vlan())} {self.service()} -j ACCEPT")
        for chain in self.host_chains:
            self.host_rules(chain, rest // 8 // len(self.host_chains))
        for vlan in self.vlans:
            for _ in range(rest // 10 // len(self.vlans)):
                self.add(
                    f"from_{vlan}", f"-s {self.host(vlan)} -d {self.outside()} -o eth0 {self.service()} {self.target()}"
                )
        for i, vlan in enumerate(self.vlans):
            rest = rules - sum(map(len, self.lines.values()))
            self.to(vlan, len(self.lines[f"to_{vlan}"]) + rest // (len(self.vlans) - i))


def _nat(site: _Site) -> Iterator[str]:
    """The lines of the table nat, 3 for each VLAN."""
    yield from ("*nat", *(f":{chain} ACCEPT [0:0]" for chain in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")))
    for vlan in site.vlans:
        host, port = site.host(vlan).removesuffix("/32"), site.rng.choice(PORTS)
        begin = "-i eth0 -p tcp -m tcp --dport"
        yield f"-A PREROUTING -d 192.0.2.{vlan}/32 {begin} {port} -j DNAT --to-destination {host}"
        yield f"-A PREROUTING -d 192.0.2.1/32 {begin} {2000 + vlan} -j DNAT --to-destination {host}:22"
    for vlan in site.vlans:
        yield f"-A POSTROUTING -s 10.{vlan}.0.0/16 -o eth0 -j SNAT --to-source 192.0.2.{vlan}"
    yield "COMMIT"


def iptables_dump(rules: int = 5500, chains: int = 100, seed: int = 1) -> str:
    """An iptables-save with so many rules, and user chains, in its table filter and a smaller table nat."""
    site = _Site(rules, chains, seed)
    nat = list(_nat(site))
    site.fill(rules - 3 * len(site.vlans))
    base = ("INPUT", "FORWARD", "OUTPUT")
    heads = (
        f":{name} {'DROP' if name in base[:2] else 'ACCEPT' if name in base else '-'} [0:0]" for name in site.lines
    )
    filters = ["*filter", *heads, *(line for lines in site.lines.values() for line in lines), "COMMIT"]
    return "\n".join(["# Generated by iptables-save v1.8.9", *nat, *filters]) + "\n"
