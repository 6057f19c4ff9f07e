"""What holds whatever happens: random numbers for the small parts, random stories for the whole.

In a world of simulated servers and processes, after every event of every story (see ``checks``):

(a) no two leases of a name are held at once, unless others meddled with the keys; and who has lost a key will be told;
(b) a held lease's deadline is not after the expiry of a majority of its keys;
(c) once everybody has left, no key is left behind, and every room has said that nobody is there;
(d) whoever waits is served: within the time to live, and promptly if the lock is free;
(e) a room with waiters has something that will come back to it;
(f) who loses a lock is told what happened to it, and nobody loses it for nothing.

``WORLDS[...]`` and the seed of a failure make the same history again.
"""

import random
from collections.abc import Callable

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from asynclock.core.clock import ServerClock
from asynclock.core.lease import Lease, Tokens, when_enough_free
from asynclock.core.room import NEVER, Room
from asynclock.core.rules import Rules

from .servers import Server
from .story import play, random_story, shortened
from .world import World

seconds = st.floats(0, 1e6)


# The small parts


@given(now=seconds, offset=st.floats(-1e9, 1e9), there=st.floats(0, 10), back=st.floats(0, 10), later=st.floats(0, 100))
def test_a_servers_clock_is_never_behind_the_server(
    now: float, offset: float, there: float, back: float, later: float
) -> None:
    clock = ServerClock()
    assert not clock.usable(now)
    clock.observe(sent=now, server=now + there + offset)
    then = now + there + back + later
    real = then + offset
    assert clock.at_most(then) >= real - 1e-6  # a microsecond of rounding, at these magnitudes
    assert clock.at_most(then) <= real + there + 1e-6
    clock.forget()
    assert clock.due(then)
    assert not clock.usable(then)


@given(majority=st.integers(1, 4), data=st.data())
def test_a_lease_counts_until_the_vote_that_makes_the_majority_ends(majority: int, data: st.DataObject) -> None:
    lease = Lease(b"", 2 * majority - 1)
    for _ in range(data.draw(st.integers(1, 12))):
        index = data.draw(st.integers(0, 2 * majority - 2))
        lease.vote(index, data.draw(st.sampled_from([0.0, 1.0, 2.0, 3.5])), majority)
        assert lease.deadline == sorted(lease.votes, reverse=True)[majority - 1]
        now = data.draw(st.sampled_from([0.5, 1.0, 3.0, 4.0]))
        assert (lease.granted(now) >= majority) == (now < lease.deadline)


@given(majority=st.integers(1, 3), times=st.dictionaries(st.integers(0, 4), st.sampled_from([1.0, 2.0, 3.0, NEVER])))
def test_a_waiter_looks_again_when_a_majority_can_be_free_and_not_before(
    majority: int, times: dict[int, float]
) -> None:
    rules = Rules(majority=majority, validity=5, extend_interval=2, try_next_after=0.02)
    lease = Lease(b"", rules.keys)
    lease.free_at = {index: when for index, when in times.items() if index < rules.keys}

    def possible(when: float) -> bool:
        return rules.keys - sum(free > when for free in lease.free_at.values()) >= majority

    again = when_enough_free(lease, rules, 0.5)
    if again == NEVER:
        assert not possible(3.0)
    else:
        assert possible(again)
        assert again == 0.5 or not possible(again - 0.1)


def test_no_two_tokens_are_the_same() -> None:
    one, two = Tokens(b"1"), Tokens(b"2")
    tokens = [tokens.next(forced=forced) for tokens in (one, two) for forced in (False, True) for _ in range(500)]
    assert len(set(tokens)) == len(tokens)


@given(
    majority=st.integers(1, 10),
    validity=st.floats(0.01, 1e4),
    share=st.floats(0.01, 0.7),
)
def test_the_numbers_of_the_rules_fit_each_other(majority: int, validity: float, share: float) -> None:
    rules = Rules(majority=majority, validity=validity, extend_interval=validity * share, try_next_after=0.02)
    assert rules.keys // 2 + 1 == majority
    assert rules.keys % 2 == 1
    assert validity - rules.term == pytest.approx(validity * 0.01 + 0.002)
    assert 0 < rules.extend_interval < rules.term


# The whole

Plant = Callable[[pytest.MonkeyPatch], None]
WORLDS = {
    "one key": (1, 1),
    "three keys, one server": (2, 1),
    "three keys, three servers": (2, 3),
    "five servers": (3, 5),
}


def world(which: str, seed: int, tracking: bool = True, majority: int | None = None) -> World:
    needed, servers = WORLDS[which]
    rules = Rules(
        majority=needed,
        validity=4.0,
        extend_interval=2.0,
        try_next_after=0.02,
        tracking=tracking,
        handoffs=(0, 3, 100)[seed % 3],
    )
    if majority is not None:
        object.__setattr__(rules, "majority", majority)
    return World(seed, rules, servers=servers, clients=3)


def tell(seed: int, make: Callable[[], World]) -> None:
    """Play the story of this seed; if it breaks a rule, say so with as few steps as will do."""
    story = random_story(random.Random(seed))
    try:
        play(story, make())
    except Exception:
        steps, broken = shortened(story, make)
        lines = "\n".join(map(str, steps))
        raise AssertionError(f"seed {seed}: {broken!r:.200}\n{lines}\n{broken}") from broken


@pytest.mark.parametrize("tracking", [True, False], ids=["tracking", "no tracking"])
@pytest.mark.parametrize("which", WORLDS)
@settings(max_examples=100, deadline=None, database=None, phases=[Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_the_rules_hold_in_every_story(which: str, tracking: bool, seed: int) -> None:
    tell(seed, lambda: world(which, seed, tracking))


# Do these stories find what is wrong? Each fault is planted alone.


def count_from_the_reply(patch: pytest.MonkeyPatch) -> None:
    answered = Room.answered
    patch.setattr(
        Room,
        "answered",
        lambda self, lease, index, ask, sent, ok, found, ttl, now: answered(
            self, lease, index, ask, now, ok, found, ttl, now
        ),
    )


def forget_to_wake(patch: pytest.MonkeyPatch) -> None:
    wake_at = Room._wake_at

    def only_others(self: Room[object], when: float) -> None:
        if (
            self.holder is not None
            or self.attempt is not None
            or self.quiet is not None
            or self.back_at
            or when == NEVER
        ):
            wake_at(self, when)

    patch.setattr(Room, "_wake_at", only_others)


def release_whatever_is_there(patch: pytest.MonkeyPatch) -> None:
    execute = Server.execute

    def careless(self: Server, command: str, key: bytes, token: bytes, *rest: object) -> object:
        entry = self.peek(key)
        return execute(self, command, key, entry[0] if command == "DELIFEQ" and entry else token, *rest)

    patch.setattr(Server, "execute", careless)


def ignore_pushes_while_acquiring(patch: pytest.MonkeyPatch) -> None:
    pushed = Room.pushed
    patch.setattr(Room, "pushed", lambda self, *told: None if self.attempt is not None else pushed(self, *told))


FAULTS: dict[str, tuple[str, Plant | None, str]] = {
    "deadline counted from the reply": ("one key", count_from_the_reply, "(b)"),
    "no wake-up at the time to live": ("one key", forget_to_wake, "(e)"),
    "release without a look at the value": ("one key", release_whatever_is_there, "("),
    "a majority of one less": ("three keys, three servers", None, "("),
    "pushes ignored while acquiring": ("three keys, three servers", ignore_pushes_while_acquiring, "(a)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_stories_find_a_planted_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    which, plant, rule = FAULTS[fault]
    if plant is not None:
        plant(monkeypatch)
    for seed in range(300):
        try:
            play(random_story(random.Random(seed)), world(which, seed, majority=None if plant else 1))
        except AssertionError as broken:
            if str(broken).startswith(rule):
                return
    pytest.fail("300 stories, and it was not found")
