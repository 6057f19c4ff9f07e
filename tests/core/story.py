"""Stories: what tasks, outsiders and accidents do to a world, step by step, until everything comes to rest."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from asynclock.core.room import MAX_BACKOFF, NEVER

from .checks import Check
from .processes import Task
from .servers import Trouble
from .world import World

# How often each thing happens, in parts of the whole.
WEIGHTS = {
    "join": 24,
    "try_join": 8,
    "force": 4,
    "end a holder": 12,
    "end a waiter": 8,
    "close": 1,
    "drop": 6,
    "crash": 2,
    "crash and forget": 2,
    "delete": 3,
    "write": 2,
    "shorten": 2,
    "flush": 1,
    "stall": 3,
    "freeze": 3,
    "die": 2,
    "trouble": 1,
}
GAPS = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.0, 0.02, 0.1, 0.5, 2.0, 5.0)  # seconds before it happens


@dataclass(frozen=True, slots=True)
class Step:
    gap: float
    kind: str
    who: int = 0  # which client or server, modulo how many there are
    more: int = 0  # which of its tasks or keys, or for how long


def random_story(chance: random.Random, length: int = 40) -> list[Step]:
    """A story of some kinds of things, at one pace: a little of everything rarely gets far with any (swarm testing)."""
    gaps = chance.choice((GAPS[:5], GAPS[:8], GAPS))
    weights = {kind: weight * chance.choice((0, 0, 1, 1, 4)) for kind, weight in WEIGHTS.items()}
    weights["join"] += 10
    kinds = chance.choices(list(weights), list(weights.values()), k=length)
    return [Step(chance.choice(gaps), kind, chance.randrange(12), chance.randrange(8)) for kind in kinds]


def play(story: list[Step], world: World) -> Check:
    """Let it happen, then let everything come to rest."""
    check = Check(world)
    for step in story:
        world.run(step.gap)
        _do(world, step)
        check()
    _settle(world, check)
    return check


def shortened(story: list[Step], world: Callable[[], World]) -> tuple[list[Step], Exception]:
    """Leave out what does not matter, from a story that breaks a rule. Returns what is left, and what it breaks."""

    def outcome(story: list[Step]) -> Exception | None:
        try:
            play(story, world())
        except Exception as error:
            return error
        return None

    broken = outcome(story)
    assert broken is not None
    position = 0
    while position < len(story):
        shorter = story[:position] + story[position + 1 :]
        error = outcome(shorter)
        if type(error) is type(broken) and str(error)[:3] == str(broken)[:3]:
            story, broken = shorter, error
        else:
            position += 1
    return story, broken


def _do(world: World, step: Step) -> None:
    client = world.clients[step.who % len(world.clients)]
    server = world.servers[step.who % len(world.servers)]
    key = b"%d:a" % (step.more % world.rules.keys)
    seconds = (0.01, 0.05, 0.3, 1.0, 2.0, 3.0, 5.0, 8.0)[step.more % 8]
    if step.kind in ("join", "try_join", "force"):
        if client.frozen <= world.now:
            client.tasks = [task for task in client.tasks if task.state in ("waiting", "held")]
            client.acquire("b" if step.more == 7 else "a", step.kind)
        return
    if step.kind in ("end a holder", "end a waiter"):
        state = "held" if step.kind == "end a holder" else "waiting"
        tasks = [task for task in client.tasks if task.state == state]
        if tasks and client.frozen <= world.now:
            client.end(tasks[step.more % len(tasks)])
        return
    world.disturbed |= step.kind in ("drop", "crash", "crash and forget", "shorten", "stall", "freeze", "trouble")
    world.log(f"{step.kind}: client {client.name}, server {server.name}, key {key!r}, {seconds} s")
    if step.kind == "close" and client.frozen <= world.now:
        world.replace(client)
        client.close()
    elif step.kind == "drop":
        link = client.links[step.more % len(world.servers)]
        if link is not None:
            link.drop()
    elif step.kind.startswith("crash") and server.up:
        server.crash(seconds, amnesia=step.kind != "crash")
    elif step.kind in ("delete", "write", "shorten"):
        world.servers[world.home(step.more % world.rules.keys)].meddle(key, step.kind)
    elif step.kind == "flush":
        server.flush()
    elif step.kind == "stall":
        server.stalled = world.now + seconds / 4
    elif step.kind == "freeze":
        world.freeze(client, seconds)
    elif step.kind == "die":
        world.replace(client)
        client.die()
    elif step.kind == "trouble":
        server.trouble = Trouble(lasting=step.more % 4 == 0)
        server.troubled = world.now + seconds / 4


def _settle(world: World, check: Check) -> None:
    """Accidents are over, but for one server of three that may stay down. Waiters get their turn, then all leave."""
    world.calm = True
    while any(client.frozen > world.now for client in world.clients) or any(
        server.stalled > world.now for server in world.servers
    ):
        world.run(0.1)
    for server in world.servers:
        server.down = 0.0
        server.troubled = min(server.troubled, world.now)
    if len(world.servers) > 1 and world.random.random() < 0.3:
        world.servers[0].crash(NEVER, amnesia=False)
        world.disturbed = True
    if world.random.random() < 0.5:
        _serve_all(world, check)
    for task in _tasks(world):
        task.client.end(task)
        world.run(world.random.choice((0.0, 0.001)))
    world.run(world.rules.validity * 0.7)
    for client in world.clients:
        for name in client.rooms:
            raise check.broken(f"(c) {client.name}: everybody has left the room of {name!r}, and it did not say so")
    for server in world.servers:
        for key in server.data if server.up else ():
            entry = server.peek(key)
            if entry is not None and entry[0] not in world.stranded and _is_owned(world, entry[0]):
                raise check.broken(f"(c) server {server.name} still has {key!r} = {entry[0]!r}")


def _serve_all(world: World, check: Check) -> None:
    """(d) Everybody who waits is served: within the time to live, and promptly once the lock is free."""
    world.hold = lambda: 0.02
    for task in _tasks(world):
        if task.state == "held":
            world.at(world.now + 0.05, task.client.end, task)
    world.progress = world.now
    patience = world.rules.validity + 2 * MAX_BACKOFF + world.silence
    free_since = NEVER
    while any(task.state == "waiting" for task in _tasks(world)):
        world.run(0.05)
        if world.now - world.progress > patience + (0 if world.rules.tracking else world.rules.extend_interval):
            raise check.broken(f"(d) nobody got the lock for {patience:.1f} s")
        free_since = min(free_since, world.now) if _free(world) else NEVER
        if world.now - free_since > 1.5 * MAX_BACKOFF + (0 if world.rules.tracking else world.rules.extend_interval):
            raise check.broken("(d) the lock is free, everybody is connected, and nobody takes it")


def _free(world: World) -> bool:
    """Could somebody who waits have the lock at once?"""
    keys = {key for client in world.clients for room in client.rooms.values() if room.queue for key in room.keys}
    if any(server.peek(key) for server in world.servers for key in keys):
        return False
    links = [link for client in world.clients for link in client.links if link is not None and not link.broken]
    return len(links) == len(world.clients) * sum(server.up for server in world.servers)


def _tasks(world: World) -> list[Task]:
    return [task for client in world.clients for task in client.tasks if task.state in ("waiting", "held")]


def _is_owned(world: World, value: bytes) -> bool:
    return any(client.tokens._id in value for client in [*world.clients, *world.past] if client.alive)
