"""rules.lineage: which questions matter."""

from __future__ import annotations

import numpy as np

from conntracker.rules.lineage import Lineage

ACCEPT, DROP = 0, 1


def nodes(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Numbers of states."""
    return np.array(numbers, np.int64)


def test_a_question_matters_to_packets_whose_answers_lead_to_other_verdicts() -> None:
    """Of two packets that are asked the same, it may matter to one."""
    lineage = Lineage(2)
    yes, no = lineage.fork("q", nodes(0, 1), nodes(0, 1))
    lineage.end(yes, nodes(ACCEPT, ACCEPT))
    lineage.end(no, nodes(DROP, ACCEPT))
    masks, mattering = lineage.settle()
    assert masks.tolist() == [1 << ACCEPT | 1 << DROP, 1 << ACCEPT]
    assert [(text, rows.tolist()) for text, rows in mattering] == [("q", [0])]


def test_states_that_became_one_again_have_the_same_end() -> None:
    """What was asked before matters no more, what is asked then may."""
    lineage = Lineage(1)
    yes, no = lineage.fork("early", nodes(0), nodes(0))
    lineage.merge(no, yes)
    one, other = lineage.fork("late", yes, nodes(0))
    lineage.end(one, nodes(ACCEPT))
    lineage.end(other, nodes(DROP))
    masks, mattering = lineage.settle()
    assert masks.tolist() == [1 << ACCEPT | 1 << DROP]
    assert [text for text, _ in mattering] == ["late"]


def test_without_questions_each_packet_has_one_end() -> None:
    """Nothing forked."""
    lineage = Lineage(1)
    lineage.end(nodes(0), nodes(DROP))
    masks, mattering = lineage.settle()
    assert (masks.tolist(), mattering, lineage.forked) == ([1 << DROP], [], False)
