from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.rules.iptables import format_save, parse_save
from conntracker.rules.iptables.extensions import MATCHES, TARGET_OPTIONS
from conntracker.rules.iptables.words import quoted, split

# Every match, with the protocol that it needs.
ASKING = """
-m addrtype ! --dst-type LOCAL,BROADCAST ; -p ah -m ah --ahspi 1:2 ; -m bpf --bytecode 1,6 ; -m cgroup --cgroup 1
-m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 1
-m comment --comment "a \\"b\\" \\\\ '"
-m connbytes --connbytes 1: --connbytes-dir both --connbytes-mode bytes ; -m connlabel --label x
-m rpfilter --invert
-m connlimit --connlimit-above 3 --connlimit-mask 32 --connlimit-saddr ; -m connmark ! --mark 0x1/0x3
-m conntrack --ctstate NEW,DNAT ! --ctproto 6 --ctdir REPLY ; -m cpu ! --cpu 1
-p dccp -m dccp --dport 5 --dccp-types SYNC
-m devgroup --src-group 0x1 ; -m dscp --dscp 0x0a ; -m dst --dst-len 4 ; -m ecn --ecn-ip-ect 1
-p esp -m esp --espspi 5
-m eui64 ; -m frag --fragfirst ; -m hashlimit --hashlimit-upto 3/sec --hashlimit-name a ; -m hbh --hbh-len 8
-m helper --helper "ftp 21" ; -m hl --hl-gt 3 ; -p icmp -m icmp --icmp-type 3/4
-p ipv6-icmp -m icmp6 --icmpv6-type 128
-p ipcomp -m ipcomp --ipcompspi 5 ; -m iprange ! --src-range 10.0.0.1-10.0.0.9 ; -m ipv6header --header dst --soft
-m ipvs --vdir REPLY ; -m length --length 100:200 ; -m limit --limit 3/min ; -m mac --mac-source 00:11:22:33:44:55
-m mark --mark 1 ; -p mh -m mh --mh-type 1 ; -p udp -m multiport ! --ports 1,5:9 ; -m nfacct --nfacct-name x
-m osf --genre Linux ; -m owner ! --uid-owner 5 ; -m physdev --physdev-in eth+ ; -m pkttype --pkt-type broadcast
-m policy --dir in --pol none ; -m quota --quota 5 ; -m rateest --rateest x --rateest-gt --rateest-bps 5
-m realm --realm 1
-m recent --update --seconds 60 --hitcount 4 --name x --rsource ; -m rt --rt-type 0
-p sctp -m sctp --chunk-types any INIT
-m set ! --match-set x src,dst ; -m socket --transparent ; -m srh --srh-tag 1 ; -m state ! --state INVALID
-m statistic --mode random --probability 0.5 ; -m string --string "a;b" --algo bm ; -p tcp -m tcp ! --syn --sport :5
-p tcp -m tcpmss --mss 5:9 ; -m time --timestart 10:00 ; -m tos --tos 0x10/0x3f ; -m ttl --ttl-lt 5
-m u32 --u32 "6 & 1=1"
-p udp -m udp --dport 53 ; -m unheard --of "it is" ! --not ; ! -i eth0 -o wg+ -f
"""

DOING = """
-j ACCEPT ; -j AUDIT --type drop ; -j CHECKSUM --checksum-fill ; -j CLASSIFY --set-class 1:2 ; -j CLUSTERIP --new
-j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff ; -j CONNSECMARK --save ; -j CT --notrack ; -j DNPT --src-pfx ::/8
-j DNAT --to-destination 10.0.0.1-10.0.0.9:5-6 --random ; -j DROP ; -j DSCP --set-dscp 0x01 ; -j ECN --ecn-tcp-remove
-j HL --hl-inc 1 ; -j HMARK --hmark-mod 1 ; -j IDLETIMER --timeout 5 --label x ; -j LED --led-trigger-id x
-j MARK --or-mark 1
-j LOG --log-prefix "a; b" --log-level 4 ; -j MASQUERADE --to-ports 5 ; -j NETMAP --to 10.0.0.0/8
-j NFLOG --nflog-group 5
-j NFQUEUE --queue-balance 1:2 ; -j NOTRACK ; -j QUEUE ; -j RATEEST --rateest-name x ; -j REDIRECT --to-ports 5
-j REJECT
-j RETURN ; -j SECMARK --selctx x ; -j SET --add-set x src ; -j SNAT --to-source 10.0.0.1 ; -j SNPT --dst-pfx ::/8
-g user
-j SYNPROXY --mss 1460 ; -j TCPMSS --clamp-mss-to-pmtu ; -j TCPOPTSTRIP --strip-options 5 ; -j TEE --gateway 10.0.0.1
-j TOS --set-tos 0x10/0x3f ; -j TPROXY --on-port 5 ; -j TRACE ; -j TTL --ttl-dec 1 ; -j ULOG ; -j UNHEARD --of x
-j user
"""


def forms(text: str) -> list[str]:
    """One form each: they stand apart by ` ; ` and line ends."""
    return [form for line in text.strip().splitlines() for form in line.split(" ; ")]


COUNTERS = st.none() | st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
RULES = st.lists(st.tuples(COUNTERS, st.sampled_from(forms(ASKING)), st.sampled_from(["", *forms(DOING)])), max_size=8)


def save(rules: list[tuple[tuple[int, int] | None, str, str]]) -> str:
    """The rules as a save of one table."""
    lines = ["*mangle", ":INPUT DROP [5:6]", ":user - [0:0]"]
    for counters, asked, done in rules:
        counted = "" if counters is None else "[{}:{}] ".format(*counters)
        lines.append(f"{counted}-A INPUT {asked} {done}".rstrip())
    return "\n".join([*lines, "COMMIT", ""])


def test_every_match_and_target_is_here() -> None:
    """The rules of these tests use all matches and targets that are known."""
    words = [split(form) for form in forms(ASKING + DOING)]
    used = {after for form in words for before, after in pairwise(form) if before in {"-m", "-j"}}
    assert used >= MATCHES.keys() | TARGET_OPTIONS.keys()


@given(RULES)
def test_what_is_printed_is_read_as_the_same(rules: list[tuple[tuple[int, int] | None, str, str]]) -> None:
    """Chains, rules, meanings and counters come back from their text; the text of each rule is as it was written."""
    text = save(rules)
    chains = parse_save(text, family="ip")
    assert parse_save(format_save(chains)) == chains
    kept = [line.partition("] ")[2] if line.startswith("[") else line for line in text.splitlines()[3:-1]]
    assert [rule.text for rule in chains[0].chain.rules] == kept
    assert [meaning.counters for meaning in chains[0].meanings] == [counters for counters, _, _ in rules]


@given(st.text().filter(lambda word: "\n" not in word))
def test_a_word_in_quotes_is_read_as_the_same_word(word: str) -> None:
    """What stands in quotes is one word, whatever it holds."""
    assert split(f"-j {quoted(word)} x") == ["-j", word, "x"]


def test_several_families_and_kinds() -> None:
    """Each kind and family comes under a header that says so."""
    four, six = parse_save(save([]), kind="iptables-nft"), parse_save(save([]), family="ip6")
    text = format_save((*four, *six))
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Generated by iptables-save (nf_tables)",
        "# Generated by ip6tables-save (legacy)",
    ]
    assert parse_save(text) == (*four, *six)


def test_what_has_no_text() -> None:
    """Chains of nft, and rules that were never read, cannot be printed."""
    known, *_ = parse_save(save([(None, "-m eui64", "")]))
    nft = dataclasses.replace(known, chain=dataclasses.replace(known.chain, kind="nft"))
    unread = dataclasses.replace(known.chain.rules[0], text=None)
    with pytest.raises(ValueError, match="not of iptables"):
        format_save([nft])
    with pytest.raises(ValueError, match="no text"):
        format_save([dataclasses.replace(known, chain=dataclasses.replace(known.chain, rules=(unread,)))])
