from __future__ import annotations

import pytest

from conntracker.formats.icmp import icmp_name


@pytest.mark.parametrize(
    ("proto", "kind", "code", "name"),
    [
        (1, 3, 1, "host unreachable"),
        (1, 3, 99, "destination unreachable"),
        (1, 8, 0, "echo request"),
        (1, 11, 0, "time to live exceeded"),
        (58, 1, 3, "address unreachable"),
        (58, 3, None, "time exceeded"),
        (58, 129, 0, "echo reply"),
        (1, 77, 0, None),
        (17, 3, 1, None),
    ],
)
def test_names(proto: int, kind: int, code: int | None, name: str | None) -> None:
    """A type and code has its own name, or that of its type, or none."""
    assert icmp_name(proto, kind, code) == name
