"""Writing in a thread of its own."""

from __future__ import annotations

import io

import pytest

from conntracker.formats.behind import WriteBehind


class Broken(io.BytesIO):
    """A stream that takes one part."""

    def write(self, part: object) -> int:
        """Fails from the second part on."""
        if self.tell():
            raise BrokenPipeError
        return super().write(part)  # type: ignore[arg-type]


def test_parts_are_written_in_order() -> None:
    """All parts are there, in their order, when the block ends."""
    out = io.BytesIO()
    with WriteBehind(out) as behind:
        for i in range(1000):
            behind.write(b"%d\n" % i)
    assert out.getvalue() == b"".join(b"%d\n" % i for i in range(1000))


@pytest.mark.parametrize("parts", [2, 1000])
def test_an_error_reaches_the_writer(parts: int) -> None:
    """An error of the stream is raised, by a later part or at the end of the block, and nothing hangs."""

    def write() -> None:
        with WriteBehind(Broken()) as behind:
            for _ in range(parts):
                behind.write(b"x")

    with pytest.raises(BrokenPipeError):
        write()


def test_an_error_of_the_block_is_not_hidden() -> None:
    """What the block itself raises goes on."""

    def write() -> None:
        with WriteBehind(io.BytesIO()) as behind:
            behind.write(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        write()
