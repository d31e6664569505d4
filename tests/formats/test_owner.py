"""Owners as the text log writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.formats.owner import owner_text, sender, senders_text
from conntracker.owner import CERTAINTIES, EXACT, FORWARDS, HOLDER, INHERITED, KERNELS, NO_ID, SHARED, Owner
from support.senders import owner

TEXTS: list[tuple[Owner | None, str]] = [
    (owner("ssh", 5057, user="rafaeldtinoco"), "ssh,pid:5057,uid:rafaeldtinoco"),
    (owner("ssh", 5057, 1000), "ssh,pid:5057,uid:1000"),
    (owner("nginx", 7, user="www-data", certainty=INHERITED), "nginx,pid:7,uid:www-data,inherited"),
    (owner("nginx", 7, user="www-data", certainty=SHARED), "nginx,pid:7,uid:www-data,shared"),
    (owner("nginx", 7, user="www-data", certainty=HOLDER), "nginx,pid:7,uid:www-data,holder"),
    (owner("nginx", 7, user="www-data", certainty=EXACT), "nginx,pid:7,uid:www-data"),
    (owner("nginx", 7, user="www-data", certainty=None), "nginx,pid:7,uid:www-data"),
    (owner("", 7, NO_ID), "-,pid:7,uid:-"),
    (owner("a\x1b[2Jb\n\r\0c", 7, user="root"), "a?[2Jb???c,pid:7,uid:root"),
    (owner("caf\udcff", 7, user="ren\u00e9"), "caf?,pid:7,uid:ren\u00e9"),
    (owner("a\u2028\u202eb", 7, 0), "a??b,pid:7,uid:0"),
    (KERNELS, "kernel"),
    (FORWARDS, "forwarded"),
    (None, "-"),
]


@pytest.mark.parametrize(("one", "text"), TEXTS)
def test_text_of_an_owner(one: Owner | None, text: str) -> None:
    """Name, id and user of a process, and how sure that is; nothing that a terminal would obey."""
    assert owner_text(one) == text


A, B, C, D, E = (owner(name, 1, 0) for name in "abcde")
SEVERAL: list[tuple[tuple[Owner, ...], str]] = [
    ((), "-"),
    ((A,), "a,pid:1,uid:0"),
    ((B, A), "b,pid:1,uid:0; a,pid:1,uid:0"),
    ((A, owner("a", 1, 0, start=5), KERNELS), "a,pid:1,uid:0; kernel"),
    ((C, B, A), "c,pid:1,uid:0; b,pid:1,uid:0; a,pid:1,uid:0"),
    ((A, B, A, C, D, E, KERNELS), "a,pid:1,uid:0; b,pid:1,uid:0; c,pid:1,uid:0; +3"),
]


@pytest.mark.parametrize(("owners", "text"), SEVERAL)
def test_text_of_several_owners(owners: tuple[Owner, ...], text: str) -> None:
    """Those that read differently stand once each, in their order; after three only their number."""
    assert senders_text([sender(one) for one in owners]) == text


WORDS = st.text(st.characters(), max_size=16)  # surrogates, too


@given(st.lists(st.builds(owner, WORDS, st.integers(0, 2**22), user=WORDS, certainty=st.sampled_from(CERTAINTIES))))
def test_any_name_is_harmless(owners: list[Owner]) -> None:
    """Whatever a process calls itself, its text is one printable line that can be encoded."""
    text = senders_text([sender(one) for one in owners])
    assert text.isprintable()
    assert len(text.encode().splitlines()) == 1
