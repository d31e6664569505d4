from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.rules.snapshot import effect
from conntracker.steps import KINDS, Rule

IPTABLES = """
-A INPUT -j ACCEPT                                                       ; accept
-A INPUT -p tcp -m tcp --dport 22                                        ; continue
-A INPUT -m comment --comment "-j DROP"                                  ; continue
-A INPUT -m comment --comment "-j DROP" -j ACCEPT                        ; accept
-A INPUT -m comment --comment "say \\"-j DROP\\" -g x" -j RETURN         ; return
-A INPUT -m comment --comment -j -j DROP                                 ; drop
-A INPUT -m comment --comment -g                                         ; continue
-A INPUT -j LOG --log-prefix "-j DROP "                                  ; continue
-A INPUT -j LOG --log-prefix -j                                          ; continue
-A INPUT -i -j -j user                                                   ; jump user
-A INPUT -m recent --update --seconds 60 --name -j --mask 255.255.255.255 --rsource -j DROP ; drop
-A INPUT -m string --string "a -j ACCEPT" --algo bm -j REJECT --reject-with tcp-reset ; reject
-A INPUT -g user-chain                                                   ; goto user-chain
-A INPUT -j LOG_DROP                                                     ; jump LOG_DROP
-A INPUT -p udp -j NFQUEUE --queue-num 3                                 ; queue
-A INPUT -j QUEUE                                                        ; queue
-A PREROUTING -p tcp -j DNAT --to-destination 1.2.3.4:80                 ; accept
-A POSTROUTING -j SNAT --to-source 1.2.3.4                               ; accept
-A POSTROUTING -j MASQUERADE --random                                    ; accept
-A PREROUTING -p tcp -j REDIRECT --to-ports 8080                         ; accept
-A PREROUTING -j NETMAP --to 10.0.0.0/8                                  ; accept
-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff                         ; continue
-A FORWARD -p tcp -j TCPMSS --clamp-mss-to-pmtu                          ; continue
-A PREROUTING -j CT --notrack                                            ; continue
-A PREROUTING -j NOTRACK                                                 ; continue
-A PREROUTING -j NFLOG --nflog-prefix "-j"                               ; continue
-A INPUT -j SET --add-set a src                                          ; continue
-A PREROUTING -j TRACE                                                   ; continue
-A PREROUTING -p tcp -j TPROXY --on-port 50080 --on-ip 0.0.0.0           ; ?
-A INPUT -p tcp -j SYNPROXY --wscale 7                                   ; stolen
-A INPUT -j CLUSTERIP --new                                              ; ?
-A INPUT -j                                                              ; jump
"""

NFT = """
accept                                                                   ; accept
tcp dport 22 counter drop                                                ; drop
counter log prefix "reject drop" comment "accept"                        ; continue
counter log prefix "reject" drop comment "accept { jump x }"             ; drop
reject                                                                   ; reject
tcp dport 22 reject with tcp reset                                       ; reject
log prefix "a" reject with icmpx admin-prohibited comment "drop"         ; reject
icmp type redirect accept                                                ; accept
icmp type redirect counter                                               ; continue
icmp type != redirect counter                                            ; continue
iifname "drop" jump input_lan                                            ; jump input_lan
goto reject                                                              ; goto reject
ct state vmap { established : accept, invalid : drop }                   ; ?
tcp dport vmap @services                                                 ; ?
ip saddr { 1.2.3.4, 1.2.3.5 } return                                     ; return
ip saddr 1.2.3.4 jump { tcp dport 22 accept; drop; }                     ; jump
continue                                                                 ; continue
queue flags bypass to 1-3                                                ; queue
tcp dport 80 dnat to 1.2.3.4:80                                          ; accept
dnat ip to 10.0.0.1                                                      ; accept
dnat ip addr . port to ip saddr map { 1.1.1.1 : 2.2.2.2 . 80 }           ; accept
ip saddr 10.0.0.0/8 snat ip prefix to ip saddr map { 10.0.0.0/8 : 11.0.0.0/8 } ; accept
oifname "eth0" masquerade random                                         ; accept
masquerade                                                               ; accept
tcp dport 80 redirect to :8080                                           ; accept
redirect                                                                 ; accept
ct status dnat counter                                                   ; continue
ct status dnat dup to 1.2.3.4                                            ; continue
ct status dnat accept                                                    ; accept
meta mark set tcp dport map { 1 : 0x00000002 }                           ; continue
fwd to "eth1"                                                            ; stolen
dup to "eth1"                                                            ; continue
synproxy mss 1460 wscale 7                                               ; ?
xt target "TPROXY"                                                       ; ?
update @s { ip saddr limit rate 5/second } drop                          ; drop
"""


def cases(table: str) -> list[tuple[str, tuple[str | None, str | None]]]:
    """(rule, effect) of each line of a table."""
    found = []
    for line in table.strip().splitlines():
        text, _, expected = line.rpartition(";")
        verdict, _, target = expected.strip().partition(" ")
        found.append((text.strip(), (None if verdict == "?" else verdict, target or None)))
    return found


def rule(kind: str, text: str | None) -> Rule:
    """A rule with a text."""
    return Rule(kind, "ip", "filter", "INPUT", 1, None, text)


@pytest.mark.parametrize(("text", "expected"), cases(IPTABLES))
@pytest.mark.parametrize("kind", ["iptables-nft", "iptables-legacy"])
def test_effect_of_an_iptables_rule(kind: str, text: str, expected: tuple[str | None, str | None]) -> None:
    """The target decides, whatever strings say."""
    verdict, target = effect(rule(kind, text))
    assert (verdict, target or None) == expected


@pytest.mark.parametrize(("text", "expected"), cases(NFT))
def test_effect_of_an_nft_rule(text: str, expected: tuple[str | None, str | None]) -> None:
    """The last statement decides, whatever strings and sets say."""
    assert effect(rule("nft", text)) == expected


def test_a_rule_without_text_has_no_known_effect() -> None:
    """Where the ruleset was never read, nothing is known."""
    assert effect(rule("nft", None)) == (None, None)


@given(st.sampled_from(KINDS), st.text(st.sampled_from(' "\\{}jump-jacceptredirect\n'), max_size=200))
def test_any_text_has_an_effect(kind: str, text: str) -> None:
    """Nothing is raised for any text."""
    effect(rule(kind, text))
