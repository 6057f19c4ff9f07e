"""What must hold in a world after every single event."""

from __future__ import annotations

from asynclock.core.lease import Lease
from asynclock.core.room import NEVER, Room
from asynclock.core.rules import LossReason

from .processes import Client, Task
from .servers import Request, Server
from .world import World


class Broken(AssertionError):
    """A rule does not hold; says which, and what had happened."""


class Check:
    """What must hold in a world, after every event. The letters are those of the rules in ``test_properties``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.majority = world.rules.keys // 2 + 1
        self.losses = self.through = 0
        world.watch = self

    def __call__(self) -> None:
        held: dict[str, list[tuple[Client, Lease]]] = {}
        for client in self.world.clients:
            for name, room in client.rooms.items():
                self._consistent(client, room)
                self._somebody_comes(client, room)
                lease = room.holder
                if lease is not None and self.world.now < lease.deadline:
                    held.setdefault(name, []).append((client, lease))
                    self._not_longer_than_the_servers(client, room, lease)
                    self._loss_is_on_its_way(client, room, lease)
        for leases in held.values():
            if len(leases) > 1:
                self._one_holder(leases)
        self._lost_for_a_reason()
        self._failed_for_a_reason()

    def broken(self, rule: str) -> Broken:
        history = "\n".join(f"{when - 1000:10.4f}  {what}" for when, what in self.world.history[-60:])
        return Broken(f"{rule}\nat {self.world.now - 1000:.4f} s, after\n{history}")

    def _server(self, index: int) -> Server:
        return self.world.servers[self.world.home(index)]

    def _one_holder(self, held: list[tuple[Client, Lease]]) -> None:
        """(a) No two leases with a majority of votes each, not counting keys that others meddled with."""
        now, majority = self.world.now, self.majority
        sound = []
        for client, lease in held:
            room = lease.owner.room
            votes = sum(
                until > now and (room.keys[index], lease.token) not in self.world.touched
                for index, until in enumerate(lease.votes)
            )
            if votes >= majority:
                sound.append(client.name)
        if len(sound) > 1:
            raise self.broken(f"(a) {' and '.join(sound)} hold the lock at once")

    def _loss_is_on_its_way(self, client: Client, room: Room[Task], lease: Lease) -> None:
        """(a) A vote that the server does not back is about to be found out."""
        if not self.world.rules.tracking:
            return
        for index, until in enumerate(lease.votes):
            if until <= self.world.now or lease.asked[index] or room.forces:
                continue  # a FORCE that is under way ends with a loss, or with another look at the keys
            troubled = self._server(index).troubled
            if troubled and self.world.now < max(troubled, client.frozen) + self.world.rules.extend_interval:
                continue  # the server answered with an error, and has not been asked again since
            key = room.keys[index]
            entry = self._server(index).peek(key)
            if entry is not None and entry[0] == lease.token:
                continue
            link = client.links[self.world.home(index)]
            if (
                link is None
                or link.broken
                or any(request is None and what in (None, key) for request, what in link.back)
            ):
                continue
            raise self.broken(f"(a) {client.name} counts on key {index}, has lost it, and will not be told")

    def _not_longer_than_the_servers(self, client: Client, room: Room[Task], lease: Lease) -> None:
        """(b) The deadline is not after the expiry of a majority of the keys."""
        ends = []
        for index, key in enumerate(room.keys):
            server = self._server(index)
            entry = server.peek(key)
            if (key, lease.token) in self.world.touched:
                ends.append(NEVER)
            elif entry is None or entry[0] != lease.token:
                ends.append(0.0)
            else:
                ends.append(NEVER if entry[1] is None else server.ends(entry[1]))
        end = sorted(ends, reverse=True)[self.majority - 1]
        if lease.deadline > end + 1e-9:
            raise self.broken(f"(b) {client.name} counts on {lease.deadline - 1000:.4f}, its keys end {end - 1000:.4f}")

    def _somebody_comes(self, client: Client, room: Room[Task]) -> None:
        """(e) A room with waiters has something that will come back to it."""
        if not room.queue or room.holder is not None:
            return
        if room.attempt is not None and room.attempt.pending():
            return
        if room.wake < NEVER and room.timer is not None:
            return
        if all(client.links[self.world.home(index)] is not None for index in range(self.world.rules.keys)):
            raise self.broken(f"(e) {client.name} waits for {room.name!r}, and nothing will come back to it")

    def _consistent(self, client: Client, room: Room[Task]) -> None:
        if not (room.holder or room.attempt or room.queue or room.forces):
            raise self.broken(f"(c) {client.name}: nobody is in the room of {room.name!r}, and it did not say so")
        if room.holder is not None and room.attempt is not None and not room.forced:
            raise self.broken(f"{client.name} both holds {room.name!r} and tries to")
        if room.impatient is not None and (room.impatient not in room.queue or room.attempt is None):
            raise self.broken(f"{client.name}: {room.impatient!r} does not wait, and is made to")
        for task in client.tasks:
            assert task.room is not None
            if task.state == "waiting" and task not in task.room.queue and task not in task.room.forces:
                raise self.broken(f"{task!r} waits, and was forgotten")
            if task.state == "held" and (task.lease is not task.room.holder or task.lease.owner is not task):
                raise self.broken(f"{task!r} holds {task.name!r}, and the room does not know")
        for lease in (room.holder, room.attempt):
            if lease is not None:
                asked = [0] * self.world.rules.keys
                for link in client.links:
                    for request in link.waiting if link is not None else ():
                        if isinstance(request, Request) and request.lease is lease:
                            asked[request.index] += 1
                if asked != lease.asked:
                    raise self.broken(f"{client.name}: asked {asked}, counted {lease.asked}")

    def _lost_for_a_reason(self) -> None:
        """(f) Who loses a lock is told what really happened to it."""
        for client, lease, reason, _ in self.world.losses[self.losses :]:
            self.losses += 1
            if reason is LossReason.EXPIRED:
                sound = self.world.now >= lease.deadline and self.world.disturbed
            elif reason is LossReason.DISCONNECTED:
                sound = any(client.gone)
            elif reason is LossReason.CLOSED:
                sound = True
            else:
                sound = any(token == lease.token for _, token in self.world.touched)
            if not sound:
                raise self.broken(f"(f) {client.name} lost the lock, {reason}, and nobody had touched it")

    def _failed_for_a_reason(self) -> None:
        """(f) Nobody fails for a lost connection that was not; whoever waits outlasts everything but lasting errors."""
        for task in self.world.through[self.through :]:
            self.through += 1
            error = task.problem
            if task.state != "failed":
                sound = task.how == "try_join"
            elif error is None:
                sound = self.world.cut and task.how != "join"
            else:
                sound = error.lasting or task.how != "join"
            if not sound:
                raise self.broken(f"(f) {task!r} was {task.state}: {error}")
