"""What must hold in a world after every event, numbered as the guarantees in README.md.

1. No two leases of a name are held at once while the servers keep the keys. (A server that loses keys, and then gives
   no votes until they would have expired, counts as keeping them.) So no more permits of a semaphore are held at once
   than there are.
2. A held lease's deadline is not after the expiry of a majority of its keys.
3. A room with waiters has a pending reply or a timer that is due no later than the last of the keys may be free. Every
   waiter gets the lock: within the time to live, promptly if the lock is free, and however many others contend.
4. Once all tasks are done, no key is left.
5. A holder that has lost the majority of its keys is notified within ``TOLD`` packet delays, counted while it is
   connected and running and its servers answer. The reason is the right one. No task loses a lock, or fails to get
   one, without a cause.

Guarantee 6 is about the scopes around the leases, which are not simulated.

7. (docs/fencing.md) Who has a lock later has a greater fencing token.
8. (docs/at-least.md) Nobody gets a lock before its least time is over, except by force, or if it was lost, or servers
   have lost its keys. A lock that was lost is not kept.
9. (docs/several.md) A scope holds all its names, or is lost. Whoever waits for one holds none that comes after it.
10. (docs/options.md#min_replicas) A key counts once a replica has it, and until it ends there.

``story`` checks what must hold once a story has come to rest (4, and that all waiters got the lock); the rest is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from asynclock.core.lease import Lease
from asynclock.core.pace import PAUSE
from asynclock.core.reasons import LossReason
from asynclock.core.retry import MAX_BACKOFF
from asynclock.core.room import Room
from asynclock.core.rules import NEVER
from asynclock.wire.noloop import CHECK_EVERY

from .links import Link
from .permits import Semaphore
from .processes import Client, Task
from .replicas import MARGIN
from .requests import ReadAgain, Request
from .servers import Server
from .several import Group
from .stays import is_closed, too_early
from .world import World

TOLD = 5  # packet delays: a push, a reply in flight (with its request just sent), and one more request and reply


class Broken(AssertionError):
    """A guarantee does not hold. ``guarantee`` is its number, or 0 for an internal inconsistency."""

    def __init__(self, guarantee: int, what: str, world: World) -> None:
        super().__init__(f"guarantee {guarantee}: {what}, at {world.ms(world.now):.3f} ms" if guarantee else what)
        self.guarantee = guarantee


@dataclass(slots=True)
class Unbacked:
    """A held lease that no longer has a majority of its keys."""

    client: Client
    room: Room[Task]
    since: float  # when that began, or when the last obstacle to notifying the holder ended


def _requests(link: Link) -> Iterator[Request]:
    """Those that have no outcome yet."""
    for each in link.waiting:
        if isinstance(each, Request):
            yield each
        elif isinstance(each, ReadAgain):
            yield each.write
    if link.confirmations is not None:
        yield from link.confirmations.covered
        yield from link.confirmations.queued


class Check:
    """Checks everything that the last event may have changed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.majority = world.rules.keys // 2 + 1
        self.unbacked: dict[Lease, Unbacked] = {}
        self.unnoticed: dict[tuple[Semaphore, int], float] = {}  # free slots that are believed taken, and since when
        self.told: list[float] = []  # how long it took to notify holders without a majority, in packet delays
        self.overlaps = 0  # how often a lock had two holders because servers had lost keys
        self.losses = self.failed = self.tokens = self.keeps = self.grants = self.deleted = 0
        self._servers = [world.servers[world.home(index)] for index in range(world.rules.keys)]  # of each key
        self._overlapping: set[tuple[Lease, Lease]] = set()
        world.watch = self

    def __call__(self) -> None:
        world = self.world
        acted, altered = world.acted, world.altered
        world.acted, world.altered = None, False
        if world.long_lived:
            raise self.broken(2, world.long_lived)
        if acted is not None:
            if not acted.past:
                for room in acted.rooms.values():
                    self._consistent(acted, room)
                    if room.holder is not None:
                        self._one_holder(room)
                        if world.permits:
                            self._no_more_than_permits(room)
                    elif room.queue:
                        self._somebody_comes(acted, room)
                self._remembered(acted)
                if not altered:
                    self._backed(acted)
            if self.losses < len(world.losses):
                self._lost_for_a_reason()
            if self.failed < len(world.failed):
                self._failed_for_a_reason()
            if self.tokens < len(world.tokens):
                self._tokens_grow()
            if self.grants < len(world.grants) or self.keeps < len(world.keeps):
                self._least_times()
        if self.deleted < len(world.deleted):
            self._not_deleted_too_early()
        if altered:
            for client in world.clients:
                self._backed(client)
        if self.unbacked:
            self._about_to_be_told()
        if world.permits and world.rules.tracking:
            for client in world.clients:
                for semaphore in client.semaphores.values():
                    self._free_slots_are_noticed(client, semaphore)

    def broken(self, guarantee: int, what: str) -> Broken:
        return Broken(guarantee, what, self.world)

    def count_losses(self) -> Counter[str]:
        return Counter(str(reason) for _, _, reason, _ in self.world.losses)

    # 1: one holder

    def _one_holder(self, held_here: Room[Task]) -> None:
        """At most one lease is sound: one whose keys all were kept, or that has a majority of votes without the keys
        that others have changed."""
        now, world = self.world.now, self.world
        held: list[tuple[Client, Room[Task], Lease]] = []
        for client in world.clients:
            room = client.rooms.get(held_here.name)
            if room is not None and room.holder is not None and now < room.holder.deadline:
                held.append((client, room, room.holder))
        if len(held) < 2:
            return
        sound = [client for client, room, lease in held if self._sound(room, lease)]
        if len(sound) > 1:
            raise self.broken(1, f"{' and '.join(client.name for client in sound)} hold {held_here.name!r} at once")
        pair = (held[0][2], held[1][2])
        if pair not in self._overlapping:
            self._overlapping.add(pair)
            self.overlaps += 1

    def _sound(self, room: Room[Task], lease: Lease) -> bool:
        kept = [not self._breached(key, lease) for key in room.keys]
        votes = sum(until > self.world.now and kept[index] for index, until in enumerate(lease.votes))
        return all(kept) or votes >= self.majority

    def _no_more_than_permits(self, held_here: Room[Task]) -> None:
        """At most as many leases of the slots of a semaphore are sound as it has permits."""
        world = self.world
        name = held_here.name.partition("#")[0]
        sound = [
            client
            for client in world.clients
            for room in client.rooms.values()
            if room.name.partition("#")[0] == name
            and room.holder is not None
            and world.now < room.holder.deadline
            and self._sound(room, room.holder)
        ]
        if len(sound) > world.permits:
            raise self.broken(1, f"{len(sound)} permits of {name!r} are held at once, and there are {world.permits}")

    def _breached(self, key: bytes, lease: Lease) -> bool:
        entry = (key, lease.token)
        return entry in self.world.touched and entry not in self.world.forgotten

    def _backed(self, client: Client) -> None:
        """Check whether the servers still have the keys of what ``client`` holds (1, 5), and for how long (2)."""
        for room in client.rooms.values():
            lease = room.holder
            if lease is None or self.world.now >= lease.deadline:
                continue
            if self.world.replicas:
                self._replicas_have_the_votes(client, room, lease)
            token = lease.token
            ours = long = 0
            for key, server in zip(room.keys, self._servers, strict=True):
                # An expired key counts until the server deletes it: there is no push before. (Its vote has ended by
                # then, unless the server's clock was set forward.)
                entry = server.data.get(key)
                if entry is not None and entry[0] == token:
                    ours += 1
                    long += entry[1] is None or server.ends(entry[1]) > lease.deadline - 1e-9
            if long < self.majority:
                self._no_longer_than_the_servers(client, room, lease)
            if ours < self.world.rules.keys:
                self._loss_is_on_its_way(client, room, lease)
            if ours >= self.majority:
                self.unbacked.pop(lease, None)
            elif lease not in self.unbacked:
                self.unbacked[lease] = Unbacked(client, room, self.world.now)

    def _loss_is_on_its_way(self, client: Client, room: Room[Task], lease: Lease) -> None:
        """If the server has lost a key that the holder counts on, the holder is about to find out."""
        if not self.world.rules.tracking or lease in client.looks:
            return
        for index, until in enumerate(lease.votes):
            if until <= self.world.now or lease.in_flight[index] or room.forces:
                continue  # a FORCE in flight ends with a loss, or with another check of the keys
            server, key = self._servers[index], room.keys[index]
            if server.has(key, lease.token):
                continue
            if server.troubled and self.world.now < self._asked_again(server, client):
                continue  # the server answered with an error, and has got no request since
            link = client.links[server.name]
            if link is None or link.broken or self._hidden(client, server, key) > 0:
                continue
            if lease.unverified >> index & 1 and lease.next_check <= self.world.now + PAUSE:
                continue  # its check is scheduled
            if self._next_extension(link, lease, index) > self.world.now:
                continue
            under_way = [*link.told, *(what for asker, what in link.back if asker is None)]
            if not any(what in (None, key) for what in under_way):
                raise self.broken(5, f"{client.name} counts on key {index}, has lost it, and will not be notified")

    def _next_extension(self, link: Link, lease: Lease, index: int) -> float:
        """The latest time of the extension that reads a doubtful key, while WAITs on this connection fail."""
        if link.confirmations is None or not lease.unverified >> index & 1:
            return 0.0
        return min(lease.extend_at, link.confirmations.failed_at + MAX_BACKOFF)

    def _confirmation_takes(self) -> float:
        """Seconds, with the GET after it."""
        return self.world.rules.try_next_after + MARGIN + 2 * self.world.longest if self.world.replicas else 0.0

    def _hidden(self, client: Client, server: Server, key: bytes) -> float:
        """Seconds left in which the client must find out about a change that NOLOOP has hidden from it."""
        since = server.hidden.get((client, key))
        if since is None:
            return 0.0
        link = client.links[server.name]
        assert link is not None
        since = max(since, link.since, client.frozen, server.stalled, server.troubled)
        return max(0.0, since + CHECK_EVERY + TOLD * self.world.longest + 0.001 - self.world.now)

    def _asked_again(self, server: Server, client: Client) -> float:
        """The latest time of the next request to a server that has answered with errors."""
        return max(server.troubled, client.frozen) + self.world.rules.extend_interval

    def _about_to_be_told(self) -> None:
        """A holder without a majority is notified in time. The time starts anew after an obstacle: a stopped process or
        server, errors, a lost connection."""
        world = self.world
        bound = TOLD * world.longest + self._confirmation_takes() + 0.001
        if not world.rules.tracking:
            bound += world.rules.extend_interval
        for lease, unbacked in list(self.unbacked.items()):
            client, room = unbacked.client, unbacked.room
            since = world.now if lease in client.looks else max(unbacked.since, client.frozen)
            put_off = PAUSE if client.paused_at >= since - PAUSE else 0.0
            for index, (key, server) in enumerate(zip(room.keys, self._servers, strict=True)):
                link = client.links[server.name]
                if link is None or link.broken or room.forces or self._hidden(client, server, key) > 0:
                    since = world.now
                else:
                    since = max(since, link.since, server.stalled, self._next_extension(link, lease, index))
                    if server.troubled:
                        since = max(since, self._asked_again(server, client))
            unbacked.since = since
            if world.now - since > bound + put_off:
                raise self.broken(5, f"{client.name} has no majority for {1000 * (world.now - since):.3f} ms")
            if room.holder is not lease or world.now >= lease.deadline or client.past:
                del self.unbacked[lease]
                if world.rules.tracking and world.now < lease.deadline and not client.past and not put_off:
                    self.told.append(max(0.0, world.now - since) / world.longest)

    # 2: never longer than the servers

    def _no_longer_than_the_servers(self, client: Client, room: Room[Task], lease: Lease) -> None:
        ends = []
        for key, server in zip(room.keys, self._servers, strict=True):
            if (key, lease.token) in self.world.touched:
                ends.append(NEVER)
            elif not server.has(key, lease.token):
                ends.append(0.0)
            else:
                expiry = server.data[key][1]
                ends.append(NEVER if expiry is None else server.ends(expiry))
        end = sorted(ends, reverse=True)[self.majority - 1]
        if lease.deadline > end + 1e-9:
            ends_at = f"end at {self.world.ms(end):.3f} ms" if end else "are not there"
            deadline = self.world.ms(lease.deadline)
            raise self.broken(2, f"{client.name} counts on its keys until {deadline:.3f} ms, but they {ends_at}")

    # 3: no waiter depends on a message that may never come

    def _somebody_comes(self, client: Client, room: Room[Task]) -> None:
        if room.attempt is not None and room.attempt.pending():
            return
        links = [client.links[server.name] for server in self._servers]
        if any(link is None or link.quarantined for link in links):
            return
        if room.wake == NEVER or room.wake < room.due:
            raise self.broken(3, f"{client.name} waits for {room.name!r}, and nothing will wake it up")
        rules = self.world.rules
        free = max(server.promised.get(key, 0.0) for key, server in zip(room.keys, self._servers, strict=True))
        patience = self.world.now + max(MAX_BACKOFF, 0 if rules.tracking else rules.extend_interval)
        answered = self.world.longest + client.stopped  # a reply has the time that was left when the server sent it
        if (
            room.wake
            > max(free + answered, patience) + (rules.validity + self.world.set_back) * self.world.drift + 0.001
        ):
            late = 1000 * (room.wake - free)
            raise self.broken(3, f"{client.name} sleeps for {late:.3f} ms after {room.name!r} may be free")

    def _free_slots_are_noticed(self, client: Client, semaphore: Semaphore) -> None:
        """A process in which tasks wait for a permit does not take a slot that has become free for taken for long: at
        most for as long as it holds back for others."""
        world, taken = self.world, semaphore.board._taken if semaphore.board.queue else {}
        bound = TOLD * world.longest + self._confirmation_takes() + 0.001 + 1.5 * world.rules.try_next_after
        if client.paused_at >= world.now - 2 * PAUSE:
            bound += PAUSE
        before, self.unnoticed = self.unnoticed, {}
        self.unnoticed.update((place, since) for place, since in before.items() if place[0] is not semaphore)
        for slot in taken:
            keys = [b"%d:%b#%d" % (index, semaphore.name.encode(), slot) for index in range(world.rules.keys)]
            if any(key in server.data for key, server in zip(keys, self._servers, strict=True)):
                continue
            since = max(before.get((semaphore, slot), world.now), client.frozen)
            for key, server in zip(keys, self._servers, strict=True):
                link = client.links[server.name]
                if link is None or link.broken or self._hidden(client, server, key) > 0:
                    since = world.now
                else:
                    since = max(since, link.since, server.stalled, server.troubled)
                    if link.confirmations is not None:
                        since = max(since, link.confirmations.failed_at + MAX_BACKOFF)  # no permit could be had
            self.unnoticed[semaphore, slot] = since
            if world.now - since > bound:
                late = 1000 * (world.now - since)
                raise self.broken(
                    3, f"{client.name} takes slot {slot} of {semaphore.name!r} for taken for {late:.3f} ms"
                )

    # Internal consistency

    def _consistent(self, client: Client, room: Room[Task]) -> None:
        if room.empty and (room.wake < NEVER or room.last_failed is not None):
            raise self.broken(0, f"{client.name}: the room of {room.name!r} is empty, but not at rest")
        if room.holder is not None and room.attempt is not None and not room.attempt.forced:
            raise self.broken(0, f"{client.name} holds {room.name!r} and tries to acquire it")
        if room.no_wait is not None and (room.no_wait not in room.queue or room.attempt is None):
            raise self.broken(0, f"{client.name}: {room.no_wait!r} must not wait, but does")
        for lease in (room.holder, room.attempt):
            if lease is not None:
                asked = [0] * len(self._servers)
                for link in client.links:
                    for request in _requests(link) if link is not None else ():
                        if request.lease is lease:
                            asked[request.index] += 1
                if asked != lease.in_flight:
                    raise self.broken(0, f"{client.name}: asked {asked}, counted {lease.in_flight}")

    def _remembered(self, client: Client) -> None:
        for task in client.tasks:
            if task.semaphore is not None and task.state == "waiting":
                if not task.semaphore.knows(task):
                    raise self.broken(3, f"{task!r} waits for a permit, but nobody knows it")
                continue
            room = task.room
            if task.semaphore is not None and room is None:
                continue  # it was refused
            assert room is not None
            if task.state == "waiting" and task not in room.queue and task not in room.forces:
                raise self.broken(3, f"{task!r} waits, but the room does not know it")
            if task.state == "held" and (
                task.lease is not room.holder or getattr(task.lease, "scope_ref", None) is not task
            ):
                raise self.broken(5, f"{task!r} holds {task.name!r}, but the room does not know it")
        for group in client.groups:
            self._all_or_none(group)

    # 8: several names

    def _all_or_none(self, group: Group) -> None:
        """It holds all names, or waits, and then for none that comes before one that it holds."""
        states = ["" if part is None else part.state for part in group.parts]
        if group.state == "held" and set(states) != {"held"}:
            raise self.broken(9, f"{group!r} is held, and its names are {states}")
        if group.state == "waiting" and group.step.wait:
            (waits_for,) = group.step.request
            if states[waits_for] == "waiting" and "held" in states[waits_for:]:
                raise self.broken(9, f"{group!r} waits for a name before one that it holds: {states}")
        if group.state not in ("waiting", "held", "lost", "dead") and not {"held", "waiting"}.isdisjoint(states):
            raise self.broken(9, f"{group!r} is {group.state}, and its names are {states}")

    # 5: the holder is notified of a loss, with its reason

    def _lost_for_a_reason(self) -> None:
        """The reason of each loss is what really happened."""
        for client, lease, reason, _ in self.world.losses[self.losses :]:
            self.losses += 1
            if reason is LossReason.EXPIRED:
                sound = self.world.now >= lease.deadline and self.world.disturbed
                if self._could_have_been_extended(client, lease):
                    raise self.broken(5, f"{client.name} lost the lock, {reason}, although its servers were up")
            elif reason is LossReason.DISCONNECTED:
                sound = any(client.gone)
            elif reason is LossReason.CLOSED:
                sound = True
            else:
                sound = any(token == lease.token for _, token in self.world.touched)
            if not sound:
                raise self.broken(5, f"{client.name} lost the lock, {reason}, although nobody had touched it")

    def _could_have_been_extended(self, client: Client, lease: Lease) -> bool:
        """Could a majority of the keys have been extended: keys kept, servers up, no reply missing, for a while?"""
        rules = self.world.rules
        while_ago = self.world.now - (rules.validity - rules.extend_interval) / 2
        if max(client.frozen, lease.acquired_at) > while_ago:  # a lock that was granted late may expire at once
            return False
        # An extension takes three round trips then: the request, the WAIT, and the GET of ``ReadAgain``.
        if self.world.replicas and 6 * self.world.longest + rules.try_next_after + MARGIN > self.world.now - while_ago:
            return False
        there = 0
        for key, server, asked in zip(lease.scope_ref.room.keys, self._servers, lease.in_flight, strict=True):
            link = client.links[server.name]
            there += (
                link is not None
                and not link.broken
                and max(link.since, server.stalled, server.troubled) <= while_ago
                and not asked
                and (link.confirmations is None or link.confirmations.failed_at <= while_ago)
                and server.has(key, lease.token)
                and (server.replica is None or server.replica.has(key, lease.token))
                and (key, lease.token) not in self.world.touched
            )
        return there >= self.majority

    def _failed_for_a_reason(self) -> None:
        """No task fails because of a connection that was not lost; only lasting errors end a wait."""
        for task in self.world.failed[self.failed :]:
            self.failed += 1
            error = task.problem
            if task.state != "failed":
                sound = task.how == "try_join"
            elif error is None:
                # ... or a vote ended before the attempt did: somebody had shortened the key's life, or request and
                # reply took that long. A look at the slots of a semaphore lets keys be read again in an attempt, and a
                # vote counts from before that: so both count, the time since the attempt began and that of the reading.
                took = self.world.now - task.since
                late = (took if task.semaphore is None else 2 * took) >= self.world.rules.term
                sound = (self.world.cut or bool(self.world.touched) or late) and task.how != "join"
            else:
                sound = error.lasting or task.how != "join"
            if not sound:
                raise self.broken(5, f"{task!r} was {task.state}: {error}")

    # 7: fencing tokens

    def _tokens_grow(self) -> None:
        """Each new token fits between those of earlier and later holds.

        Two things are excused, and documented. A server has lost its counter, and its clock is behind what that had
        been. Or an earlier holder asks when the later one is over, and has got its keys back before it was told that it
        had lost them, or one of several: by force (without tracking, or by a request that comes late), or since the
        servers had lost the keys of both. Which of the two then gets its number first does not matter.
        """
        for position in range(self.tokens, len(self.world.tokens)):
            task, number = self.world.tokens[position]
            for other, before in self.world.tokens[:position]:
                if other.name != task.name:
                    continue
                earlier, later = (other, task) if other.turn < task.turn else (task, other)
                grows = before < number if later is task else number < before
                if grows or self.world.behind.get(task.name, 0.0) >= later.granted:
                    continue
                if self._is_over(later) if earlier is task else not self._has_majority(later):
                    continue
                raise self.broken(
                    7,
                    f"{later!r} got the lock after {earlier!r}, and the tokens are {number} for {task!r}, and before "
                    f"that {before} for {other!r}",
                )
        self.tokens = len(self.world.tokens)

    # 8: locks that stay for a least time

    def _least_times(self) -> None:
        for task in self.world.grants[self.grants :]:
            self.grants += 1
            stay = too_early(self.world, task)
            if stay is not None:
                early = 1000 * (stay.until - self.world.now)
                raise self.broken(8, f"{task!r} got the lock of {stay.task!r} {early:.3f} ms before its time was over")
        for lease in self.world.keeps[self.keeps :]:
            self.keeps += 1
            task = lease.scope_ref
            if task.state == "lost" and not is_closed(task):
                raise self.broken(8, f"{task!r} has lost its lock, {task.problem}, and keeps it")

    def _not_deleted_too_early(self) -> None:
        for token in self.world.deleted[self.deleted :]:
            self.deleted += 1
            for stay in self.world.stays:
                if stay.lease.token == token and stay.is_due(self.world):
                    raise self.broken(8, f"{stay.task!r} deletes a key before the time of its lock is over")

    def _is_over(self, task: Task) -> bool:
        """Has the task given the lock back, or lost a key of it?"""
        assert task.room is not None
        return task.state != "held" or self._untouched(task) < len(task.room.keys)

    def _has_majority(self, task: Task) -> bool:
        """Are there enough keys that nobody else has touched?"""
        return self._untouched(task) >= self.majority

    def _untouched(self, task: Task) -> int:
        assert task.room is not None and task.lease is not None
        return sum((key, task.lease.token) not in self.world.touched for key in task.room.keys)

    # 10: replicas have what counts

    def _replicas_have_the_votes(self, client: Client, room: Room[Task], lease: Lease) -> None:
        """After a failover, each key that counts would live at least as long."""
        for index, until in enumerate(lease.votes):
            server, key = self._servers[index], room.keys[index]
            if until <= self.world.now or (key, lease.token) in self.world.touched:
                continue
            assert server.replica is not None
            counts = f"{client.name} counts on key {index} until {self.world.ms(until):.3f} ms"
            if not server.replica.has(key, lease.token):
                raise self.broken(10, f"{counts}, and the replica does not have it")
            expiry = server.replica.data[key][1]
            end = NEVER if expiry is None else server.ends(expiry)
            if until > end + 1e-9:
                raise self.broken(10, f"{counts}, and on the replica it ends at {self.world.ms(end):.3f} ms")
