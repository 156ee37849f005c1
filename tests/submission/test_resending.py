"""The tables of what is sent again, written out."""

import pytest

from kie4o.stores.store import EntryState
from kie4o.submission.resending import NO_RESUBMIT, RESENDS, WINDOW_CODES, Resend, Resubmit, resend_after
from kie4o.submission.verdict import Judgement, Verdict

PLANNED, UNKNOWN, FAILED = EntryState.PLANNED, EntryState.UNKNOWN, EntryState.FAILED


@pytest.mark.parametrize(
    ("resubmit", "states"),
    [
        (NO_RESUBMIT, {PLANNED}),
        (Resubmit(after_unknown=True), {PLANNED, UNKNOWN}),
        (Resubmit(after_failure=True), {PLANNED, FAILED}),
        (Resubmit(after_unknown=True, after_failure=True), {PLANNED, UNKNOWN, FAILED}),
    ],
    ids=["neither", "unknown", "failure", "both"],
)
def test_from_which_states_a_request_is_sent(resubmit: Resubmit, states: set[EntryState]) -> None:
    """A key that was paid for is paid again only after what the caller has named."""
    assert {state for state in EntryState if resubmit.allows(state)} == states
    assert set(resubmit.states) == states


def test_how_each_cause_is_repeated() -> None:
    """Which causes, how often and after how many seconds; a window takes the place of the delays."""
    told = {cause: [one.delay(sent, 1.0) for sent in range(one.times)] for cause, one in RESENDS.items()}
    assert told == {
        Verdict.NOT_SENT: [0.5, 1.0],
        429: [0.0] * 5,
        430: [0.0] * 5,
        455: [60.0] * 3,
        550: [30.0, 60.0, 120.0, 240.0],
    }
    assert {429, 430} == WINDOW_CODES
    assert {cause for cause, one in RESENDS.items() if one.delay(0, 0.0) < told[cause][0]} == {
        Verdict.NOT_SENT
    }


def test_a_delay_grows_to_its_maximum_and_jitter_shortens_it() -> None:
    resend = Resend(9, first=1.0, maximum=8.0)
    assert [resend.delay(sent, 0.25) for sent in range(6)] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    jittered = Resend(9, first=1.0, maximum=8.0, jitter=True)
    assert [jittered.delay(sent, 0.25) for sent in range(6)] == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]


def test_what_is_never_sent_again() -> None:
    """Only a refusal is, and none for want of credits, whatever its code."""
    for code in (*range(-1, 600), None):
        refused = Judgement(Verdict.REFUSED, code=code, message="m")
        assert resend_after(refused) == (code or 0, RESENDS.get(code or 0))
        for verdict, message in [
            (Verdict.REFUSED, "Credits insufficient : please top up"),
            (Verdict.UNKNOWN, "m"),
            (Verdict.ACCEPTED, "m"),
        ]:
            assert resend_after(Judgement(verdict, code=code, message=message)) == (code or 0, None)
    unsent = Judgement(Verdict.NOT_SENT, code=429, message="m")
    assert resend_after(unsent) == (Verdict.NOT_SENT, RESENDS[Verdict.NOT_SENT])
