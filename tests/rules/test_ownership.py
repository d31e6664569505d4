from __future__ import annotations

import time

import pytest

from conntracker.rules.ownership import is_of_iptables

# What iptables-nft 1.8.9 made: nft 1.0.6's listing ; iptables-nft-save's.
OWN = """
counter accept ; -A INPUT -j ACCEPT
tcp dport 22 counter accept ; -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
tcp dport 22 counter packets 4 bytes 5 accept ; -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
meta l4proto udp udp dport { 1, 2, 3 } counter ; -A INPUT -p udp -m multiport --dports 1,2,3
counter log prefix "x # handle 4 " ; -A INPUT -j LOG --log-prefix "x # handle 4 "
iifname != "eth*" ip saddr & 255.0.255.0 == 1.0.3.0 counter goto u ; -A INPUT -s 1.0.3.0/255.0.255.0 ! -i eth+ -g u
ip frag-off & 8191 != 0 counter drop ; -A INPUT -f -j DROP
iifname "eth0" tcp dport <= 1023 counter drop ; -A INPUT -i eth0 -p tcp -m tcp --dport 0:1023 -j DROP
tcp flags syn / fin,syn,rst,ack counter drop ; -A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP
meta l4proto icmp xt match icmp counter return ; -A INPUT -p icmp -m icmp --icmp-type 3/1 -j RETURN
meta l4proto tcp counter reject with tcp reset ; -A INPUT -p tcp -j REJECT --reject-with tcp-reset
ct state new,related counter jump LOG ; -A INPUT -m conntrack --ctstate RELATED,NEW -j LOG
counter jump DOCKER-USER ; -A FORWARD -j DOCKER-USER
meta l4proto ipv6-icmp icmpv6 type echo-request counter ; -A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128
limit rate 3/minute burst 1 packets counter return ; -A INPUT -m limit --limit 3/min --limit-burst 1 -j RETURN
"""

# What nft made, and what iptables-nft-save 1.8.9 printed for it.
FOREIGN = """
tcp dport { 1, 2 } counter accept ; -A INPUT -p tcp -j ACCEPT
tcp dport { 1, 2 } counter jump DOCKER ; -A INPUT -p tcp -j DOCKER
tcp dport 22 accept ; -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
ip saddr @x counter accept ; -A INPUT -j ACCEPT
ip saddr 1.2.3.4-1.2.3.8 counter accept ; -A INPUT -s 1.2.3.8/32 -j ACCEPT
tcp dport vmap { 1 : accept } counter ; -A INPUT -p tcp
udp length 5 counter accept ; -A INPUT -p udp -j ACCEPT
udp length 5 limit rate 5/second counter ; -A INPUT -p udp -m limit --limit 5/sec
meta nftrace set 1 counter accept ; -A INPUT -j ACCEPT
ip frag-off 0 counter accept ; -A INPUT -f -j ACCEPT
icmp code 4 counter accept ; -A INPUT -p icmp -m icmp --icmp-type any -j ACCEPT
limit rate over 5/second counter accept ; -A INPUT -m limit --limit 5/sec -j ACCEPT
accept comment "counter" ; -A INPUT -j ACCEPT
"""


def pairs(table: str) -> list[list[str]]:
    """(listing, save) of each line."""
    return [line.split(" ; ") for line in table.strip().splitlines()]


@pytest.mark.parametrize(("listed", "saved"), pairs(OWN))
def test_rules_of_iptables_are_told(listed: str, saved: str) -> None:
    """A rule that iptables-nft made is shown in its syntax."""
    assert is_of_iptables(listed, saved)


@pytest.mark.parametrize(("listed", "saved"), pairs(FOREIGN))
def test_rules_of_nft_are_told(listed: str, saved: str) -> None:
    """A rule of which the save leaves something out is not."""
    assert not is_of_iptables(listed, saved)


@pytest.mark.parametrize(
    "word", ["jump accept", "reject with ", "tcp flags a counter ", "mark 1", "drop", "icmp type a "]
)
def test_long_rules_take_no_time(word: str) -> None:
    """The time is no more than linear in the length of a rule."""
    start = time.process_time()
    is_of_iptables(word * 2000 + " counter { ", "-A INPUT")
    assert time.process_time() - start < 1
