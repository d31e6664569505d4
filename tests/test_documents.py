"""What the documents show is what the program says."""

from __future__ import annotations

from pathlib import Path

import pytest

from conntracker.formats.path import diagram

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_the_netfilter_path_is_that_of_blame(name: str) -> None:
    """The diagram of the netfilter path is the one that `blame --path` prints, without marks."""
    shown = "".join(f"    {line}\n" if line else "\n" for line in diagram().rstrip("\n").split("\n"))
    assert shown in (ROOT / name).read_text()
