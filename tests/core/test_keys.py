"""What keys are called, in each layout, and where they lie in a cluster."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise, product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from asynclock.core import slots
from asynclock.core.keys import Layout, Plain, Slots, Spread, layouts
from asynclock.core.slots import SLOTS, TAG, slot_of, tag_for

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]

odd = st.text(st.sampled_from("{}:s01é "), min_size=1, max_size=12) | st.text(min_size=1, max_size=30)
names = odd.map(lambda name: name.encode(errors="replace")) | st.binary(min_size=1, max_size=20)
prefixes = st.text(st.sampled_from("}:s01a"), min_size=1, max_size=8).map(str.encode) | st.just(b"asynclock")
counts = st.sampled_from([3, 3, 3, 5, 7, 101])
LAYOUTS: list[Callable[[bytes, int], Layout]] = [Plain, Spread]
IDS = ["plain", "spread"]


@pytest.mark.parametrize("kind", LAYOUTS, ids=IDS)
@given(prefix=prefixes, count=counts, name=names)
@example(b"asynclock", 3, b"{}")
@example(b"asynclock", 3, b"{a}{b}")
@example(b"asynclock", 3, b"}:")
@example(b"a:s0", 3, b"s0:{000}:x")
@example(b"asynclock", 3, "\N{LOCK}".encode() * 10_000)
@example(b"asynclock", 3, b"\xff\0\r\n")
def test_a_name_comes_back_from_each_of_its_keys(
    kind: Callable[[bytes, int], Layout], prefix: bytes, count: int, name: bytes
) -> None:
    layout = kind(prefix, count)
    keys = layout.keys(name)
    assert [layout.parsed(key) for key in keys] == [(index, name) for index in range(count)]
    assert all(key.startswith(prefix + b":") and key.endswith(b":" + name) for key in keys)


@given(prefix=prefixes, one=names, other=names)
def test_no_key_belongs_to_two_layouts(prefix: bytes, one: bytes, other: bytes) -> None:
    plain, spread = Plain(prefix, 3), Spread(prefix, 3)
    assert not {*plain.keys(one)} & {*spread.keys(other)}
    assert [spread.parsed(key) for key in plain.keys(one)] == [None] * 3
    assert [plain.parsed(key) for key in spread.keys(one)] == [None] * 3


@given(key=st.binary(max_size=30))
@example(b"asynclock:s0:{")
@example(b"asynclock:s0:{000}")
@example(b"asynclock:s0:{0000}:x")
@example(b"asynclock:s0:{000:}x")
@example(b"asynclock:s3:{000}:x")
@example(b"asynclock:0")
@example(b"asynclock:3:x")
@example(b"asynclock:f0:x")
def test_what_is_no_key_is_taken_for_none(key: bytes) -> None:
    assert Plain(b"asynclock", 3).parsed(key) is Spread(b"asynclock", 3).parsed(key) is None


@pytest.mark.parametrize("prefix", [b"asynclock", b"}", b"a}b"])
@given(count=counts, name=names)
def test_each_key_is_in_another_part_a_whole_part_from_the_next(prefix: bytes, count: int, name: bytes) -> None:
    found = sorted(slot_of(key) for key in Spread(prefix, count).keys(name))
    assert [slot * count // SLOTS for slot in found] == list(range(count))
    gaps = [after - before for before, after in pairwise([*found, found[0] + SLOTS])]
    assert min(gaps) >= SLOTS // count and max(gaps) <= SLOTS // count + 2


def shards(*firsts: int) -> list[range]:
    return [range(first, end) for first, end in pairwise([*firsts, SLOTS])]


DIVISIONS = {
    "redis-cli": shards(0, 5461, 10923),
    "asynclock.testing": shards(0, 5461, 10922),
    "rounded up": shards(0, 5462, 10923),
    "by hand": shards(0, 5501, 11001),
    "4": shards(*range(0, SLOTS, 4096)),
    "5, uneven": shards(0, 4000, 7000, 9000, 13000),
    "16, begun anywhere": shards(0, *range(77, SLOTS, 1024)),
}


@pytest.mark.parametrize("division", DIVISIONS)
def test_no_shard_has_two_keys_of_a_lock(division: str) -> None:
    """Whatever its name, that is: at any of the places that keys may have in their parts."""
    ranges = Spread(b"asynclock", 3).ranges()
    for together in zip(*ranges, strict=True):
        for shard in DIVISIONS[division]:
            assert sum(slot in shard for slot in together) <= 1, (together, shard)


def test_a_shard_that_is_too_large_has_two_of_some() -> None:
    shard = range(0, 6000)
    two = sum(
        sum(slot in shard for slot in together) > 1 for together in zip(*Spread(b"asynclock", 3).ranges(), strict=True)
    )
    assert 0 < two < 600


def test_names_and_first_keys_are_on_all_shards_alike() -> None:
    layout = Spread(b"asynclock", 3)
    first: Counter[int] = Counter()
    sixteenths: Counter[int] = Counter()
    for number in range(16_000):
        found = [slot_of(key) for key in layout.keys(b"job %d" % number)]
        first[found[0] * 3 // SLOTS] += 1
        sixteenths.update(slot // 1024 for slot in found)
    # Of 16,000 at random, the standard deviation would be 60; of 3,000, 54. The two margins between the parts, of 170
    # slots each, are in two of the sixteenths, and half of such a margin in those at the ends.
    assert all(abs(count - 16_000 / 3) < 400 for count in first.values()) and len(first) == 3
    assert all(2_200 < count < 3_400 for count in sixteenths.values()) and len(sixteenths) == 16


def test_every_slot_can_be_reached() -> None:
    assert {slot_of(b"x{%b}y" % tag_for(slot)) for slot in range(SLOTS)} == set(range(SLOTS))
    tags = {tag_for(slot) for slot in range(SLOTS)}
    assert len(tags) == SLOTS and all(len(tag) == TAG and tag.isalnum() for tag in tags)


@given(before=st.binary(max_size=20).filter(lambda before: b"{" not in before), slot=st.integers(0, SLOTS - 1))
def test_behind_other_bytes_too(before: bytes, slot: int) -> None:
    assert slot_of(before + tag_for(slot, before)) == slot


def test_the_table_is_made_fast_and_small() -> None:
    took = []
    for _ in range(3):
        slots._tags.cache_clear()
        since = time.process_time()
        slots._tags()
        took.append(time.process_time() - since)
    assert min(took) < 0.1, took  # 14 ms on a machine of 2024
    slots._tags.cache_clear()
    tracemalloc.start()
    try:
        slots._tags()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 60_000


def test_which_layouts_there_are() -> None:
    def kinds(*arguments: object, spread: bool) -> list[type]:
        return [type(layout) for layout in layouts(*arguments, spread=spread)]  # type: ignore[arg-type]

    assert kinds("asynclock", 3, spread=False) == [Plain, Spread]
    assert kinds("asynclock", 3, spread=True) == [Spread, Plain]
    assert kinds("asynclock", 1, spread=False) == kinds("a{b", 3, spread=False) == [Plain]
    assert kinds("asynclock", SLOTS + 1, spread=False) == [Plain]
    assert len(layouts("asynclock", SLOTS - 1, spread=True)[0].keys(b"x")) == SLOTS - 1


@given(name=odd, count=counts)
def test_others_can_make_the_same_keys(name: str, count: int) -> None:
    """As docs/deployments/cluster.md has it, word by word."""
    h = zlib.crc32(name.encode())
    size = 16384 // count
    margin = size // 64
    for index, key in enumerate(Spread(b"locks", count).keys(name.encode())):
        part = (h + index) % count
        slot = round(16384 * part / count) + margin + h // count % (size - 2 * margin)
        start, _, rest = key.partition(b"{")
        tag, _, behind = rest.partition(b"}")
        assert (start, behind) == (b"locks:s%d:" % index, b":" + name.encode())
        assert key_slot(key) == slot
        assert tag == first_tags()[slot]


@cache
def first_tags() -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for letters in product(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", repeat=3):
        found.setdefault(key_slot(bytes(letters)), bytes(letters))
    return found


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (Plain(b"asynclock", 3), "asynclock:0:my_lock asynclock:1:my_lock asynclock:2:my_lock"),
        (
            Spread(b"asynclock", 3),
            "asynclock:s0:{7oP}:my_lock asynclock:s1:{0t2}:my_lock asynclock:s2:{dEI}:my_lock",
        ),
        (
            Spread(b"locks", 5),
            "locks:s0:{byM}:my_lock locks:s1:{85m}:my_lock locks:s2:{dgl}:my_lock locks:s3:{0cr}:my_lock "
            "locks:s4:{14W}:my_lock",
        ),
    ],
)
def test_keys_stay_what_they_are(layout: Layout, expected: str) -> None:
    """Processes with other versions have the same ones."""
    assert b" ".join(layout.keys(b"my_lock")).decode() == expected


# The slots of a semaphore

braced = prefixes | st.sampled_from([b"{tag}", b"a{b", b"{}x", b"{", b"a{b}c", b"}{"])


@given(prefix=braced, count=counts, name=names, slot=st.integers(0, 9999))
@example(b"asynclock", 3, b"{}", 7)
@example(b"{}", 3, b"1:000", 0)
@example(b"a{b", 3, b"}:1:x", 0)
def test_the_slots_of_a_semaphore(prefix: bytes, count: int, name: bytes, slot: int) -> None:
    """Each is found again, and all with one index are where the key of that index would be."""
    for layout in (Plain, Spread) if b"{" not in prefix else (Plain,):
        slots = Slots(layout(prefix, count), prefix, count)
        keys, markers, locks = slots.keys(name, slot), slots.markers(name), layout(prefix, count).keys(name)
        assert [slots.parsed(key) for key in keys] == [(index, slot, name) for index in range(count)]
        assert [slots.parsed(key) for key in markers] == [None] * count
        for key, marker, lock in zip(keys, markers, locks, strict=True):
            assert key.startswith(prefix + b":p") and marker != key
            assert slot_of(key) == slot_of(marker) == slot_of(lock)
        assert [layout(prefix, count).parsed(key) for key in keys + markers] == [None] * 2 * count
        assert [slots.parsed(key) for key in locks] == [None] * count


@given(key=st.binary(max_size=30))
@example(b"asynclock:p0:{000}")
@example(b"asynclock:p0:{000}:x:y")
@example(b"asynclock:p0:{000}:12345:y")
@example(b"asynclock:p0:{0000}:1:y")
@example(b"asynclock:p3:{000}:1:y")
@example(b"asynclock:p0:{000}::y")
def test_what_is_no_slot_is_taken_for_none(key: bytes) -> None:
    assert Slots(Plain(b"asynclock", 3), b"asynclock", 3).parsed(key) is None
    assert Slots(Plain(b"{}", 3), b"{}", 3).parsed(b"{}:p0:1:x:ab") is None
