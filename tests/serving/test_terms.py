"""Who leads: claims are exclusive, and a later one ends an earlier lead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.serving.terms import Terms, is_over


def attempt_in(folder):
    return RunFolder(folder).attempt("a-0")


def test_of_many_that_claim_a_term_one_gets_it(tmp_path):
    """Twenty ranks at once; all of them then see the same one lead."""
    attempt = attempt_in(tmp_path)
    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(lambda rank: Terms(attempt).claim(1, rank), range(20)))
    assert won.count(True) == 1
    assert Terms(attempt).look() == (1, won.index(True))


def test_rank_0_leads_until_a_later_term_begins(tmp_path):
    """Without a claim it is term 0; each claim ends the one before, and no term comes back."""
    attempt, seen = attempt_in(tmp_path), Terms(attempt_in(tmp_path))
    assert seen.look() == (0, 0)
    assert not is_over(attempt, 0)
    for number, rank in ((1, 2), (2, 1)):
        assert Terms(attempt).claim(number, rank)
        assert is_over(attempt, number - 1)
        assert seen.look() == (number, rank)
    assert not Terms(attempt).claim(1, 3)
    assert not is_over(attempt, 2)


def test_a_claim_that_is_half_written_names_nobody_yet(tmp_path):
    """The file is there before its content: the term has begun, its lead is not known."""
    attempt = attempt_in(tmp_path)
    attempt.term(1).parent.mkdir(parents=True)
    attempt.term(1).touch()
    assert Terms(attempt).look() == (1, None)


def test_where_nothing_can_be_written_nobody_leads(tmp_path):
    """A full or broken disk is no claim."""
    attempt = attempt_in(tmp_path)
    attempt.root.mkdir(parents=True)
    attempt.term(1).parent.touch()
    assert not Terms(attempt).claim(1, 0)
