"""What must hold in a world that was played: each law is a generator of the ways in which it is broken.

The books of the emulated Kie, what the callers were told and what the stores hold are compared. Where a law
has an exception, the world itself has made it impossible to know better: an answer that came in the very turn
in which the program was killed was perhaps never read.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator

from kie4o.errors import (
    KieError,
    SubmissionUnknownError,
    TaskError,
    TaskFailedError,
    TaskTimeoutError,
)
from kie4o.models import ImageResult
from kie4o.stores.store import Entry, EntryState
from simulation.calls import Outcome
from simulation.kie import KEY, Post
from simulation.play import World

EPSILON = 1e-6  # seconds by which a timer may come early
TURNS = 6  # of the loop, in which what has arrived is read
Law = Callable[[World], Iterator[object]]


class Books:
    """What several laws ask about a world."""

    def __init__(self, world: World) -> None:
        self.world, self.plan, self.kie = world, world.plan, world.kie
        self.posts: dict[str, list[Post]] = {}
        for post in self.kie.posts:
            self.posts.setdefault(post.prompt, []).append(post)
        calls = self.plan.calls
        self.resubmitted = {
            name for call in calls if call.on_unknown != "hold" for name in (call.prompt, *call.items)
        }
        self.retried = {name for call in calls if call.retry_failed for name in (call.prompt, *call.items)}
        self.not_charged = [post for outcome in world.outcomes for post in outcome.not_charged]
        self.ids = world.reported | {entry.task_id for entry in world.entries if entry.task_id}
        self.ids |= {task_id for outcome in world.outcomes for task_id in outcome.task_ids}

    def cut_short(self, post: Post) -> bool:
        """Whether its answer was perhaps never read: the program was cut short in these turns of the loop."""
        cut = self.world.runs[post.life].cut_at
        if cut is None or post.answered_at is None:
            return False
        return abs(cut[0] - post.answered_at) < EPSILON and cut[1] - post.answered_turn < TURNS

    def was_read(self, post: Post, *, before: float = math.inf) -> bool:
        return post.answered_at is not None and post.answered_at < before and not self.cut_short(post)

    def killed_soon_after(self, post: Post, at: float) -> bool:
        """Whether the program died before it can have saved what arrived then."""
        died = self.world.runs[post.life].life.died_at
        clean = self.plan.lives[post.life].end in ("close", "quiet")
        return not clean and died is not None and died <= at + 8 * self.plan.slow + 0.1

    def entries_of(self, prompt: str) -> list[Entry]:
        return [entry for entry in self.world.entries if entry.request.prompt == prompt]


def pay_once(world: World) -> Iterator[object]:
    """A prompt is submitted again only after a refusal that was read, or found by a person, or on request."""
    books = Books(world)
    for prompt, posts in books.posts.items():
        for first, second in itertools.pairwise(posts):
            if first in books.not_charged:
                continue
            if first.refused:
                unread = first.answered_at is None or second.at < first.answered_at
                if unread and prompt not in books.resubmitted:
                    yield f"{first}, and {second} before its refusal was read"
                continue
            on_unknown = prompt in books.resubmitted and (first.answered_at is None or world.crashed)
            failed = first.task is not None and (not first.task.good or world.plan.trust)
            if not on_unknown and not (prompt in books.retried and failed):
                yield f"{first}, then {second}"


def lose_nothing(world: World) -> Iterator[object]:
    """An id that arrived is in the store, with a caller or in an event. Of one that did not, the store says
    that the outcome is unknown."""
    books, lost = Books(world), Counter[str]()
    for post in world.kie.posts:
        if post.task is None or post.task.id in books.ids:
            continue
        lost[post.prompt] += 1
        if post.answered_at is not None and post.fate == "answered":
            if not books.cut_short(post) and not books.killed_soon_after(post, post.answered_at):
                yield f"{post}: its whole answer was read, and its id is known nowhere"
        elif post.id_arrived_at is not None:
            run = world.runs[post.life]
            cut = run.cut_at is not None or books.killed_soon_after(post, post.id_arrived_at + 4)
            if not cut:
                yield f"{post}: its id was read from a cut answer, and is known nowhere"
    for prompt, count in lost.items():
        states = Counter(entry.state for entry in books.entries_of(prompt))
        if states[EntryState.UNKNOWN] < count and not world.plan.failing:
            yield f"{prompt}: the answers to {count} submits were lost, and the store has {dict(states)}"


def stay_inside_the_limits(world: World) -> Iterator[object]:
    """Of submits and of polls, of one life; and of tasks over all lives on one store."""
    plan = world.plan
    for letter in {post.prompt[0] for post in world.kie.posts}:
        posts = [post for post in world.kie.posts if post.prompt[0] == letter]
        for life in range(len(plan.lives)):
            yield from _too_many(
                [post.at for post in posts if post.life == life], plan.limit, plan.per, "submits"
            )
        if not plan.failing:
            yield from _too_many(
                [post.at for post in posts if post.task], plan.limit, plan.per, "tasks of all lives"
            )
    for task in world.kie.tasks.values():
        for life in range(len(plan.lives)):
            times = [at for at, number in task.looks if number == life]
            yield from _too_many(times, 3, 1.0, f"polls of task {task.id[:6]}")


def _too_many(times: list[float], limit: int, per: float, what: str) -> Iterator[object]:
    times.sort()
    for first, last in zip(times, times[limit:], strict=False):
        if last - first < per - EPSILON:
            yield f"{limit + 1} {what} within {last - first:.4f} s of {per:g}, from {first:.3f}"
            return


def tell_the_record(world: World) -> Iterator[object]:
    """Results, failures and entries equal Kie's record, and nobody gets the task of another request."""
    books = Books(world)
    for outcome in world.outcomes:
        for result in outcome.results:
            task_id = result.task_id if isinstance(result, ImageResult) else result.id
            task = world.kie.tasks.get(task_id)
            if task is None or (outcome.call.prompt and task.prompt != outcome.call.prompt):
                yield f"{outcome}: the task of another request, {task}"
            elif not isinstance(result, ImageResult) or world.plan.trust:
                continue
            elif not task.good or tuple(result.urls) != task.urls:
                yield f"{outcome}: {result.urls} instead of those of {task}"
        for error in outcome.errors:
            task = world.kie.tasks.get(getattr(error, "task_id", None) or "")
            if isinstance(error, TaskFailedError) and not world.plan.trust and (task is None or task.good):
                yield f"{outcome}: {error!r} for {task}"
        if outcome.call.verb == "generate_many":
            for completion in outcome.completions:
                task = world.kie.tasks.get(completion.task_id or "")
                if task is not None and task.prompt != completion.request.prompt:
                    yield f"{outcome}: {completion.request.prompt} got {task}"
    for entry in world.entries:
        task = world.kie.tasks.get(entry.task_id or "")
        if entry.task_id is not None and (task is None or task.prompt != entry.request.prompt):
            yield f"the store has task {entry.task_id} under {entry.request.prompt}: {task}"
        elif task is None or not entry.state.ended or world.plan.trust:
            pass
        elif (entry.state is EntryState.SUCCEEDED) != task.good:
            yield f"the store says {entry.state.value} of {task}"
        posts = books.posts.get(entry.request.prompt, [])
        if entry.state is EntryState.UNKNOWN and entry.task_id is not None:
            yield f"{entry.request.prompt} is unknown, with a task id"
        if entry.state is EntryState.INTENT:
            yield f"{entry.request.prompt} is an intent after a clean end: {posts}"


def raise_our_own(world: World) -> Iterator[object]:
    """Only errors of kie4o, which name the task."""
    for outcome in world.outcomes:
        for error in outcome.errors:
            if not isinstance(error, (KieError, asyncio.CancelledError, GeneratorExit)):
                yield f"{outcome}: {error!r}"
            elif isinstance(error, TaskError) and error.task_id is None:
                yield f"{outcome}: {error!r} without its task id"


def complete_batches(world: World) -> Iterator[object]:
    """Each item of a batch is completed once."""
    for outcome in world.outcomes:
        if outcome.call.verb != "generate_many" or outcome.ended_at is None:
            continue
        indexes = [completion.index for completion in outcome.completions]
        whole = outcome.error is None and outcome.call.stop_after is None
        if len(set(indexes)) != len(indexes) or (whole and len(indexes) != len(outcome.call.items)):
            yield f"{outcome}: items {indexes} of {len(outcome.call.items)}"


def keep_deadlines(world: World) -> Iterator[object]:
    """A wait ends at its timeout, and not before."""
    plan = world.plan
    for outcome in world.outcomes:
        if outcome.waits_from is None or outcome.ended_at is None:
            continue
        limit = plan.wait_timeout if outcome.call.timeout is None else outcome.call.timeout
        took, last = outcome.ended_at - outcome.waits_from, [outcome.error]
        if isinstance(last[0], TaskTimeoutError) and took < limit - EPSILON:
            yield f"{outcome}: timed out after {took:.3f} s of {limit:g}"
        if plan.lives[outcome.life].end == "quiet" and took > limit + 8 * plan.slow + 0.01:
            yield f"{outcome}: ended after {took:.3f} s of {limit:g}"


def know_what_can_be_known(world: World) -> Iterator[object]:
    """An outcome is unknown only if its answer was lost."""
    books = Books(world)
    for outcome in world.outcomes:
        prompt, ended = outcome.call.prompt, outcome.ended_at
        told = any(isinstance(error, SubmissionUnknownError) for error in outcome.errors)
        asked_again = prompt in books.resubmitted | books.retried
        if (
            told
            and prompt
            and ended is not None
            and not asked_again
            and not world.crashed
            and not world.disconnected
        ):
            posts = [post for post in books.posts.get(prompt, []) if post.at <= ended]
            if not posts:
                yield f"{outcome}: nothing was sent"
            elif books.was_read(posts[-1], before=ended) and not world.plan.failing:
                yield f"{outcome}: {posts[-1]} was answered"
    for entry in world.entries:
        prompt = entry.request.prompt or ""
        posts = books.posts.get(prompt, [])
        if (
            entry.state is not EntryState.UNKNOWN
            or prompt in books.retried
            or entry.superseded_key is not None
        ):
            continue
        if not posts:
            if not world.disconnected and not world.crashed and not world.plan.failing:
                yield f"{prompt} is unknown, and no submit arrived"
            continue
        last = posts[-1]
        killed = world.runs[last.life].life.dead and world.plan.lives[last.life].end == "kill"
        if not books.was_read(last) or world.plan.failing or killed or prompt in books.resubmitted:
            continue
        if last.fate == "answered" and not world.crashed:
            yield f"{prompt} is unknown, although {last} was answered"
        elif last.refused and not world.disconnected:
            yield f"{prompt} is unknown, although {last} was refused"


def keep_callbacks(world: World) -> Iterator[object]:
    """What a callback that was answered 200 says is not lost."""
    plan = world.plan
    quiet = all(life.end == "quiet" for life in plan.lives)
    for entry in world.entries:
        for callback in world.kie.callbacks:
            task = callback.task
            if (
                callback.forged
                or callback.status != 200
                or task.ref != entry.ref
                or task.prompt != entry.request.prompt
            ):
                continue
            if (
                entry.state is EntryState.UNKNOWN
                and task.id not in world.kept[entry.ref]
                and plan.store != "memory"
            ):
                yield f"{task.prompt} is unknown, and its callback of {callback.at:.3f} is kept nowhere"
            certain = quiet and not plan.failing and not task.denied
            if entry.state is EntryState.SUBMITTED and entry.task_id == task.id and certain:
                yield f"{task.prompt} is submitted, though its callback of {callback.at:.3f} was answered 200"


def cancel_cleanly(world: World) -> Iterator[object]:
    """Nothing is sent for a call that was cancelled before."""
    calls = Counter(name for call in world.plan.calls for name in (call.prompt, *call.items))
    for outcome in world.outcomes:
        if outcome.cancelled_at is not None and calls[outcome.call.prompt] == 1:
            for post in world.kie.posts:
                if post.prompt == outcome.call.prompt and post.at > outcome.cancelled_at + 0.001:
                    yield f"{outcome}: cancelled at {outcome.cancelled_at:.3f}, and {post} at {post.at:.3f}"


def keep_the_secret(world: World) -> Iterator[object]:
    """The key is in its header alone, and in nothing that is told or stored."""
    if world.kie.misplaced:
        yield f"the key came {world.kie.misplaced} times outside of its header"
    for told in (*(outcome.error for outcome in world.outcomes), *world.entries):
        if KEY in f"{told} {told!r}":
            yield f"a {type(told).__name__} holds the key"


def go_on(world: World) -> Iterator[object]:
    """In a world without faults every call comes to the end of its task, by callback in no time."""
    plan = world.plan
    if plan.faults or plan.outage or plan.failing or world.crashed:
        return
    books = Books(world)
    for outcome in world.outcomes:
        if plan.lives[outcome.life].end == "quiet" and outcome.ended_at is not None:
            yield from _late(books, outcome)


def _late(books: Books, outcome: Outcome) -> Iterator[object]:
    plan, call = books.plan, outcome.call
    if call.verb not in ("generate", "submit") or call.key is not None or call.cancel is not None:
        return
    slack = 5 + 16 * plan.slow
    post = next((post for post in books.posts.get(call.prompt, []) if post.task), None)
    if "did not respond" in str(outcome.error):  # a short timeout, and a slow store
        return
    expected = isinstance(outcome.error, (TaskFailedError, TaskTimeoutError, type(None)))
    if post is None or post.task is None or not expected:
        yield f"{outcome}: in a world without faults"
        return
    came = [
        each.at
        for each in books.kie.callbacks
        if each.task is post.task and not each.forged and each.status == 200 and each.at >= post.task.ends
    ]
    if came and post.answered_at is not None and not isinstance(outcome.error, TaskTimeoutError):
        due = max(min(came), post.answered_at, outcome.started_at or 0) + slack
        if (outcome.ended_at or 0) > due:
            yield f"{outcome}: at {outcome.ended_at:.3f}, but its callback came at {min(came):.3f}"


LAWS: dict[str, Law] = {
    "pay once": pay_once,
    "lose nothing": lose_nothing,
    "limits": stay_inside_the_limits,
    "record": tell_the_record,
    "foreign": raise_our_own,
    "batches": complete_batches,
    "deadlines": keep_deadlines,
    "unknown": know_what_can_be_known,
    "callbacks": keep_callbacks,
    "cancel": cancel_cleanly,
    "secret": keep_the_secret,
    "liveness": go_on,
}


def broken(world: World) -> list[tuple[str, str]]:
    """The laws that it has broken, and how; those of the play itself first."""
    return world.broken + [(name, str(how)) for name, law in LAWS.items() for how in law(world)]
