from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.rules.chain import Chain
from conntracker.rules.nft_listing import listed_chains, without_own

LISTING = """table inet fw { # handle 1
	comment "table # handle 9 {"
	set s { # handle 9
		type ipv4_addr
		flags interval,timeout
		elements = { 10.0.0.0/8, 11.0.0.1,
\t\t\t     12.0.0.1-12.0.0.9 comment "chain x { # handle 3",
\t\t\t     16.0.0.1 timeout 5s expires 4s996ms }
	}

	map m { # handle 11
		type inet_service : verdict
		elements = { 22 : accept, 24 : jump u }
	}

	chain u { # handle 1
	}

	chain in { # handle 2
		comment "hi { # handle 3"
		type filter hook input priority filter - 5; policy drop;
		ct state vmap { invalid : drop, established : accept, new : continue } # handle 13
		ip saddr { 1.1.1.1, 1.1.1.2 } counter packets 5 bytes 6 \
log prefix "a # handle 4 { counter packets 1 bytes 2 " drop \
comment "drop } # handle 5" # handle 15
		ip saddr 1.2.3.4 jump {
			tcp dport 22 accept
			tcp dport 24 counter packets 0 bytes 0 drop
		} # handle 19
		tcp dport vmap { 22 : accept,
\t\t\t\t 23 : drop } # handle 25
		quota over 25 mbytes used 3 kbytes drop # handle 31
		update @sd { ip saddr timeout 10s counter } # handle 27
	}
}
table netdev n { # handle 2
	chain c { # handle 1
		type filter hook ingress devices = { lo, "v0" } priority -500; policy drop;
		drop # handle 4
	}

	chain e { # handle 2
		type filter hook egress device "lo" priority filter; policy accept;
	}
}
"""


def chains_of(text: str) -> dict[str, Chain]:
    """The chains of a listing by name."""
    return {chain.name: chain for chain in listed_chains(text)}


def one_chain(*lines: str, table: str = "inet t") -> Chain:
    """The only chain of a listing with these lines in it."""
    body = "".join(f"\t\t{line}\n" for line in lines)
    (chain,) = listed_chains(f"table {table} {{ # handle 1\n\tchain c {{ # handle 1\n{body}\t}}\n}}\n")
    return chain


def test_rules_have_their_handles_and_positions() -> None:
    """Each rule of a chain stands with handle, position and text, without counters and quota use, on one line."""
    assert [(rule.position, rule.handle, rule.text) for rule in chains_of(LISTING)["in"].rules] == [
        (1, 13, "ct state vmap { invalid : drop, established : accept, new : continue }"),
        (
            2,
            15,
            "ip saddr { 1.1.1.1, 1.1.1.2 } counter "
            'log prefix "a # handle 4 { counter packets 1 bytes 2 " drop comment "drop } # handle 5"',
        ),
        (3, 19, "ip saddr 1.2.3.4 jump { tcp dport 22 accept; tcp dport 24 counter drop; }"),
        (4, 25, "tcp dport vmap { 22 : accept, 23 : drop }"),
        (5, 31, "quota over 25 mbytes drop"),
        (6, 27, "update @sd { ip saddr timeout 10s counter }"),
    ]


def test_chains_say_where_they_are_called() -> None:
    """Base chains have hook, priority, policy, type and devices; user chains have none."""
    chains = chains_of(LISTING)
    assert list(chains) == ["u", "in", "c", "e"]
    found = [(c.family, c.table, c.hook, c.priority, c.policy, c.type, c.device) for c in chains.values()]
    assert found == [
        ("inet", "fw", None, None, None, None, None),
        ("inet", "fw", "input", -5, "drop", "filter", None),
        ("netdev", "n", "ingress", -500, "drop", "filter", "lo,v0"),
        ("netdev", "n", "egress", 0, "accept", "filter", "lo"),
    ]


def test_line_ends_of_windows() -> None:
    """CRLF line ends make no difference."""
    assert chains_of(LISTING.replace("\n", "\r\n")) == chains_of(LISTING)


@pytest.mark.parametrize(
    ("family", "text", "number"),
    [
        ("ip", "raw", -300),
        ("inet", "mangle + 4", -146),
        ("ip6", "dstnat - 1", -101),
        ("inet", "filter", 0),
        ("inet", "filter-5", None),
        ("inet", "security", 50),
        ("inet", "srcnat - 99", 1),
        ("bridge", "dstnat + 1", -299),
        ("bridge", "filter", -200),
        ("bridge", "out", 100),
        ("bridge", "srcnat", 300),
        ("bridge", "raw", None),
        ("arp", "filter", 0),
        ("netdev", "filter - 7", -7),
        ("ip", "2147483647", 2147483647),
        ("ip", "-2147483648", -2147483648),
        ("ip", "whatever", None),
    ],
)
def test_names_of_priorities(family: str, text: str, number: int | None) -> None:
    """A priority's name means what it means in its family; an unknown one gives None."""
    chain = one_chain(f"type filter hook prerouting priority {text}; policy accept;", table=f"{family} t")
    assert (chain.hook, chain.priority) == ("prerouting", number)


def test_a_string_goes_on_in_the_next_line() -> None:
    """A comment with line ends in it is part of one rule, whatever its lines look like."""
    chain = one_chain('accept comment "a # handle 7', 'drop # handle 3" # handle 2', "drop # handle 4")
    assert [(rule.handle, rule.text) for rule in chain.rules] == [
        (2, 'accept comment "a # handle 7 drop # handle 3"'),
        (4, "drop"),
    ]


def test_a_chain_comment_of_several_lines_is_no_rule() -> None:
    """The comment of a chain belongs to none of its rules."""
    chain = one_chain('comment "a\nb"', "type filter hook input priority 0; policy drop;", "drop # handle 4")
    assert [rule.text for rule in chain.rules] == ["drop"]


def test_a_quote_in_a_string_of_iptables_hides_no_rule() -> None:
    """In a table of iptables a string can hold a quote, which nft prints as it is: the next rule is its own."""
    lines = ('log prefix "a"b" # handle 3', "drop # handle 4", 'log prefix "c"d" # handle 5')
    for table in ("ip filter", "ip6 mangle", "bridge filter"):
        found = [(rule.handle, rule.text) for rule in one_chain(*lines, table=table).rules]
        assert found == [(3, 'log prefix "a"b"'), (4, "drop"), (5, 'log prefix "c"d"')]


def test_handles_inside_a_chain_without_a_name() -> None:
    """Rules of a chain without a name end no rule of their own, also if they have handles."""
    chain = one_chain(
        "jump {", "\taccept # handle 3", '\tdrop comment "}" # handle 4', "} # handle 5", "drop # handle 6"
    )
    assert [(rule.handle, rule.text) for rule in chain.rules] == [
        (5, 'jump { accept; drop comment "}"; }'),
        (6, "drop"),
    ]


def test_what_has_no_handle_is_kept() -> None:
    """Lines that are not understood stand as one rule without a handle."""
    assert [(rule.handle, rule.text) for rule in one_chain("accept # handle 1", "what", "is this").rules] == [
        (1, "accept"),
        (None, "what is this"),
    ]


def test_our_own_tables_are_left_out() -> None:
    """Tables of our names that have an owner are left out of the text and named; others of such names stay."""
    body = "{{ # progname python3 # handle 4\n\tflags owner\n\n\tchain c {{ # handle 1\n\t}}\n}}\n"
    own = "table inet conntracker_12{} " + body
    like = "".join(
        f"table inet {name} {{ # handle 5\n\tchain c {{ # handle 1\n\t}}\n}}\n"
        for name in ("conntracker_x", "conntracker_7")
    )
    text = own.format("") + LISTING + own.format("_1") + like
    assert without_own(text) == (LISTING + like, frozenset([("inet", "conntracker_12"), ("inet", "conntracker_12_1")]))
    assert [chain.table for chain in listed_chains(LISTING + like)][-2:] == ["conntracker_x", "conntracker_7"]


PIECES = st.sampled_from(
    ["table ip filter { # handle 1\n", "\tchain c { # handle 2\n", "\t\t", "\t}\n", "}\n", '"', " # handle 7\n", " {\n",
     "type filter hook input priority ", "; policy drop;\n", "devices = { lo } ", 'comment "', "\n", "\r\n", "accept"]
)  # fmt: skip


@given(st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=60).map("".join))
def test_any_text_is_read(text: str) -> None:
    """Any text gives chains."""
    list(listed_chains(without_own(text)[0]))


COMMENTS = st.text(st.characters(exclude_characters='"\n', exclude_categories=["Cs"]), max_size=30)


@given(st.lists(st.tuples(COMMENTS, st.integers(1, 10**9)), max_size=8))
def test_comments_never_hide_a_rule(rules: list[tuple[str, int]]) -> None:
    """Whatever the comment of one line says, each rule is found with its handle."""
    chain = one_chain(*(f'accept comment "{comment}" # handle {handle}' for comment, handle in rules))
    assert [rule.handle for rule in chain.rules] == [handle for _, handle in rules]


@pytest.mark.parametrize(
    ("header", "hook"),
    [
        ("", "input"),
        ("\tflags dormant\n", None),
        ("\tcomment \"x\"\n\tflags owner,dormant\n", None),
        ("\tcomment \"flags dormant\"\n", "input"),
        ("\tset s {\n\t\tflags dormant\n\t}\n", "input"),
    ],
)  # fmt: skip
def test_chains_of_a_dormant_table_are_in_no_hook(header: str, hook: str | None) -> None:
    """The kernel takes base chains out of their hooks while their table is dormant, and leaves other tables alone."""
    chain = "\tchain c {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n"
    found = list(listed_chains(f"table ip t {{ # handle 1\n{header}{chain}table ip u {{\n{chain}"))
    assert [one.hook for one in found] == [hook, "input"]
