"""Raw flow columns, see support.columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from numpy.typing import NDArray

from support.columns import flows, many


@pytest.fixture(name="flows")
def flows_fixture() -> Callable[..., dict[str, NDArray[Any]]]:
    """See flows()."""
    return flows


@pytest.fixture(name="many")
def many_fixture() -> Callable[..., dict[str, NDArray[Any]]]:
    """See many()."""
    return many
