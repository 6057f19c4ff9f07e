"""Stories: what tasks, other programs and accidents do in a world, step by step, until it comes to rest."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from asynclock.core.pace import PAUSE
from asynclock.core.retry import MAX_BACKOFF
from asynclock.core.rules import NEVER
from asynclock.wire.noloop import CHECK_EVERY

from .checks import Check
from .processes import Task
from .requests import OwedRelease
from .servers import Server, Trouble
from .several import NAMES, Group, acquire, some_names
from .world import World

# Relative frequency of each kind of step.
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
    "power cut": 1,
    "delete": 3,
    "write": 2,
    "shorten": 2,
    "flush": 1,
    "stall": 3,
    "freeze": 3,
    "die": 2,
    "trouble": 1,
    "clock": 1,
    "evict": 2,
}
# Added with replicas. Drops are more frequent then: a lost answer leaves a key that may be ours, and not confirmed.
WEIGHTS_OF_REPLICAS = {"fail over": 6, "replica away": 4, "drop": 24}
CALM = (
    "join",
    "try_join",
    "force",
    "end a holder",
    "end a waiter",
    "close",
    "delete",
    "write",
    "flush",
    "evict",
    "die",
)
GAPS = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.0, 0.02, 0.1, 0.5, 2.0, 5.0)  # seconds before a step
SECONDS = (0.01, 0.05, 0.3, 1.0, 2.0, 3.0, 5.0, 8.0)  # how long an accident lasts
LENGTHS = (3, 4, 5, 6, 8, 10, 15, 30)
PROMPT = 0.1  # seconds in which a free lock is taken, once errors and slow packets are over
ROUNDS = 2  # turns that each process of a crowd must get
STARVED = 10.0  # seconds without a turn, while others get theirs, after which a process counts as starved


@dataclass(frozen=True, slots=True)
class Step:
    gap: float
    kind: str
    who: int = 0  # which client or server, modulo their number
    more: int = 0  # which of its tasks or keys, or how long

    def __str__(self) -> str:
        return f"after {self.gap * 1000:6.1f} ms: {self.kind} (who {self.who}, more {self.more})"


@dataclass(frozen=True, slots=True)
class Story:
    steps: tuple[Step, ...]
    end: str = "leave"  # all tasks leave; or first all waiters are served; or, after that, a crowd contends

    def __str__(self) -> str:
        return "\n".join([*map(str, self.steps), f"in the end: {self.end}"])


def random_story(chance: random.Random, replicas: bool = False) -> Story:
    """A story of a few kinds of steps, at one pace (swarm testing: a little of everything rarely goes deep)."""
    gaps = chance.choice((GAPS[:5], GAPS[:8], GAPS))
    usual = WEIGHTS | WEIGHTS_OF_REPLICAS if replicas else WEIGHTS
    weights = [weight * chance.choice((0, 0, 1, 1, 4)) + 10 * (kind == "join") for kind, weight in usual.items()]
    kinds = chance.choices(list(usual), weights, k=chance.choice(LENGTHS))
    steps = [Step(chance.choice(gaps), kind, int(chance.random() * 12), int(chance.random() * 8)) for kind in kinds]
    return Story(tuple(steps), chance.choices(("leave", "serve", "crowd"), (30, 18, 1))[0])


def play(story: Story, world: World) -> Check:
    """Play the steps, then let the world come to rest."""
    check = Check(world)
    for step in story.steps:
        world.run(step.gap)
        _do(world, step)
        check()
    _settle(world, check, story.end)
    return check


def outcome(story: Story, world: World) -> Exception | None:
    """The error that playing the story raises, if any."""
    try:
        play(story, world)
    except Exception as error:  # the caller reports it
        return error
    return None


def shortened(story: Story, world: Callable[[], World], tries: int = 1000) -> Story:
    """Shorten a story that breaks a guarantee, as long as it still does: leave out halves, then smaller parts, then
    single steps, and then the gaps."""
    broken = outcome(story, world())
    assert broken is not None

    def same(shorter: Story) -> bool:
        nonlocal tries
        tries -= 1
        error = outcome(shorter, world()) if tries > 0 else None
        return type(error) is type(broken) and getattr(error, "guarantee", 0) == getattr(broken, "guarantee", 0)

    size = len(story.steps)
    while size:
        position, before = 0, len(story.steps)
        while position < len(story.steps):
            shorter = replace(story, steps=story.steps[:position] + story.steps[position + size :])
            if same(shorter):
                story = shorter
            else:
                position += size
        if size > 1:
            size //= 2
        elif len(story.steps) == before:
            break
    for position, step in enumerate(story.steps):
        simpler = (*story.steps[:position], replace(step, gap=0.0), *story.steps[position + 1 :])
        if step.gap and same(replace(story, steps=simpler)):
            story = replace(story, steps=simpler)
    return story


def _do(world: World, step: Step) -> None:
    client = world.clients[step.who % len(world.clients)]
    server = world.servers[step.who % len(world.servers)]
    index = step.more % world.rules.keys
    key = b"%d:%b" % (index, (world.chance.choice(NAMES) if world.several else "a").encode())
    if world.permits:
        key += b"#%d" % (step.who % world.permits)
    seconds = SECONDS[step.more % len(SECONDS)]
    if step.kind in ("join", "try_join", "force"):
        if client.frozen <= world.now:
            client.tasks = [task for task in client.tasks if task.state in ("waiting", "held")]
            client.groups = [group for group in client.groups if group.state in ("waiting", "held")]
            if world.several:
                acquire(client, some_names(client), step.kind)
            else:
                client.acquire("b" if step.more == 7 else "a", step.kind)
        return
    if step.kind in ("end a holder", "end a waiter"):
        state = "held" if step.kind == "end a holder" else "waiting"
        tasks = [task for task in client.tasks if _state(task) == state]
        if tasks and client.frozen <= world.now:
            client.end(tasks[step.more % len(tasks)])
        return
    world.disturbed |= step.kind not in CALM
    if step.kind == "close" and client.frozen <= world.now:
        world.log("-- %s closes", client.name)
        world.replace(client)
        client.close()
    elif step.kind == "drop":
        link = client.links[step.more % len(world.servers)]
        if link is not None:
            world.log("-- the connection of %s to server %d breaks", client.name, link.server.name)
            link.drop()
    elif step.kind.startswith("crash") and server.up:
        world.log("-- server %d: %s, for %s s", server.name, step.kind, seconds)
        server.crash(seconds, amnesia=step.kind != "crash")
    elif step.kind == "power cut":
        world.log("-- all servers forget everything, and are back in %s s", seconds)
        for server in world.servers:
            server.crash(seconds, amnesia=True)
    elif step.kind == "fail over" and server.up and server.replica is not None:
        if server.replica.synchronized <= world.now:  # else there is none that could take over
            world.log("-- server %d fails over to its replica in %s s", server.name, seconds)
            server.fail_over(seconds)
    elif step.kind == "replica away" and server.replica is not None:
        world.log("-- the replica of server %d is away for %s s", server.name, seconds)
        server.replica.stay_away(seconds)
    elif step.kind in ("delete", "write", "shorten"):
        server = world.servers[world.home(index)]
        world.log("-- somebody: %s %s on server %d", step.kind, key.decode(), server.name)
        server.meddle(key, step.kind)
    elif step.kind == "flush":
        world.log("-- server %d is flushed", server.name)
        server.flush()
    elif step.kind == "evict" and server.up:
        links = [link for link in server.links if not link.broken]
        during = links[step.more % len(links)] if links else None
        world.log(
            "-- server %d evicts %s during a command of %s", server.name, key.decode(), during and during.client.name
        )
        server.evict(key, during)
    elif step.kind == "stall":
        world.log("-- server %d stalls for %s s", server.name, seconds / 4)
        server.stalled = max(server.stalled, world.now + seconds / 4)
    elif step.kind == "clock":
        forward = seconds if step.who % 2 else -seconds
        world.log("-- the clock of server %d is set by %+.2f s", server.name, forward)
        server.set_clock(forward)
    elif step.kind == "freeze":
        world.log("-- %s stops for %s s", client.name, seconds)
        world.freeze(client, seconds)
    elif step.kind == "die":
        world.log("-- %s is killed", client.name)
        world.replace(client)
        client.die()
    elif step.kind == "trouble":
        server.trouble = Trouble(lasting=step.more % 4 == 0)
        server.troubled = max(server.troubled, world.now + seconds / 4)
        world.log("-- server %d answers %s for %s s", server.name, server.trouble, seconds / 4)


def _settle(world: World, check: Check, end: str) -> None:
    """End all accidents, except that one of several servers may stay down. Serve the waiters, then let all leave."""
    world.calm = True
    world.at_least = False
    while any(client.frozen > world.now for client in world.clients) or any(
        server.stalled > world.now for server in world.servers
    ):
        world.run(0.1)
    world.log("-- no more accidents; in the end: %s", end)
    for server in world.servers:
        server.down = 0.0
        server.started = min(server.started, world.now)
        server.troubled = min(server.troubled, world.now)
        if server.replica is not None:
            server.replica.come_back()
    if len(world.servers) > 2 and world.random.random() < 0.3:
        world.log("-- server 0 stays away")
        world.servers[0].crash(NEVER, amnesia=False)
        world.disturbed = True
    if world.fencing:
        _give_all_tokens(world, check)
    if end != "leave":
        _serve_all(world, check)
    # Not without tracking: then the winner is whoever happens to ask at the right time. Nor with replicas that lag by a
    # good part of ``try_next_after``: who asks for one key after the other then loses against who asks for all.
    if end == "crowd" and world.rules.tracking and world.lag <= world.rules.try_next_after / 4:
        crowd(world, check)
    for task in _tasks(world):
        task.client.end(task)
        world.run(world.random.choice((0.0, 0.001)))
    for group in [*_groups(world, "waiting"), *_groups(world, "held")]:  # that were between two steps just now
        group.end()
    world.run(world.rules.validity * 0.7)
    for client in world.clients:
        for name, room in client.rooms.items():
            if not room.empty:
                raise check.broken(0, f"{client.name}: all tasks have left, but the room of {name!r} is not empty")
        for name, semaphore in client.semaphores.items():
            if semaphore.board.tickets or semaphore.board.probes or semaphore.board.queue:
                raise check.broken(0, f"{client.name}: all tasks have left, but somebody waits for permits of {name!r}")
    for server in world.servers:
        for key in server.data if server.up else ():
            entry = server.peek(key)
            if entry is None or {(key, entry[0])} & (world.moved | world.returned):  # it stays, as it should
                continue
            if _is_owned(world, entry[0]) and not _is_owed(world, server, key, entry[0]):
                raise check.broken(4, f"server {server.name} still has {key!r} = {entry[0]!r}")


def _give_all_tokens(world: World, check: Check) -> None:
    """Whoever holds a lock and has asked for a token gets it, now that a majority of the servers answers."""
    asking = [task.fence for task in _tasks(world) if task.fence is not None]
    world.run(2 * world.silence + MAX_BACKOFF + 2.0)  # connections are lost, found to be dead, and made again
    for fence in asking:
        if not fence.over and fence.task.state == "held":
            raise check.broken(7, f"{fence.task!r} holds {fence.task.name!r}, and gets no token")


def _serve_all(world: World, check: Check) -> None:
    """Guarantee 3: every waiter gets the lock: within the time to live, and promptly once it is free."""
    world.hold = lambda: 0.02
    for task in _tasks(world):
        if _state(task) == "held":
            world.at(world.now + 0.05, task.client.end, task)
    world.progress = world.served = world.now
    poll = 0.0 if world.rules.tracking else world.rules.extend_interval
    patience = world.rules.validity * (1 + world.quarantine) + 2 * MAX_BACKOFF + world.silence + world.set_back + poll
    patience += world.longest_stay
    # A waiter counts the time to live that it has read from the reply, however late that was.
    prompt = PROMPT + world.longest + max(client.stopped for client in world.clients) + world.deletes_late
    if world.table < NEVER:
        prompt += PAUSE + CHECK_EVERY  # the server may have dropped the tracking entries of the waiters
    calm_since, free_since = world.now, NEVER
    longest = patience * (len(NAMES) if world.several else 1)  # one name after the other
    while any(task.state == "waiting" for task in _tasks(world)) or _groups(world, "waiting"):
        world.run(0.05)
        if world.now - world.progress > patience:
            raise check.broken(3, f"nobody got the lock for {patience:.1f} s")
        if world.now - world.served > longest:
            raise check.broken(3, f"nobody got all that it wanted for {longest:.1f} s")
        free_since = min(free_since, world.now) if _free(world) else NEVER
        settled = all(server.up for server in world.servers) and free_since > calm_since + 2 * MAX_BACKOFF
        bound = prompt if settled else max(prompt, 1.5 * MAX_BACKOFF)
        if world.now - max(free_since, world.progress) > bound + poll:
            raise check.broken(3, "the lock is free, all are connected, and nobody takes it")


def crowd(world: World, check: Check) -> None:
    """Guarantee 3: where each process acquires again as soon as it has released, each gets its turns."""
    turns = dict.fromkeys(world.clients, 0)
    since = dict.fromkeys(turns, world.now)
    world.hold = lambda: 0.005 + world.random.random() * 0.02

    def through(task: Task | Group) -> None:
        if task.was_held if isinstance(task, Group) else task.lease is not None:
            turns[task.client] += 1
            since[task.client] = world.now
        if world.several:
            task.client.tasks = [each for each in task.client.tasks if each.state in ("waiting", "held")]
            acquire(task.client, some_names(task.client))
        else:
            assert isinstance(task, Task)
            task.client.acquire(task.name)

    world.through = through
    for client in world.clients:
        client.tasks = []
        for _ in range(world.random.choice((1, 2))):
            acquire(client, some_names(client) if world.several else "a")
    while min(turns.values()) < ROUNDS:
        world.run(0.05)
        for client, turn in since.items():
            # So much longer the key of a killed holder may live, or that of a lock that stays.
            if world.now - turn > STARVED + world.set_back + world.longest_stay:
                raise check.broken(3, f"{client.name} got no turn for {STARVED} s, others got {sum(turns.values())}")
    world.through = lambda task: None
    world.hold = None


def _free(world: World) -> bool:
    """Could a waiter get the lock at once?"""
    if any(server.quarantined for server in world.servers):
        return False
    if world.permits:
        names = {task.name for task in _tasks(world) if task.state == "waiting"}
        slots = [
            {b"%d:%b#%d" % (index, name.encode(), slot) for index in range(world.rules.keys)}
            for name in names
            for slot in range(world.permits)
        ]
    else:
        slots = [{key for client in world.clients for room in client.rooms.values() if room.queue for key in room.keys}]
    if all(any(server.peek(key) for server in world.servers for key in keys) for keys in slots):
        return False
    links = [link for client in world.clients for link in client.links if link is not None and not link.broken]
    if any(link.quarantined for link in links):
        return False
    return len(links) == len(world.clients) * sum(server.up for server in world.servers)


def _tasks(world: World) -> list[Task]:
    return [task for client in world.clients for task in client.tasks if task.state in ("waiting", "held")]


def _groups(world: World, state: str) -> list[Group]:
    return [group for client in world.clients for group in client.groups if group.state == state]


def _state(task: Task) -> str:
    """The state of the call of acquire that the task is, or is a part of."""
    return task.state if task.group is None else task.group.state


def _is_owed(world: World, server: Server, key: bytes, value: bytes) -> bool:
    """Is a release of it about to be retried, or in flight?"""
    for client in [*world.clients, *world.past]:
        link = client.links[server.name]
        under_way = [asker for asker in link.waiting if isinstance(asker, OwedRelease)] if link is not None else []
        if (key, value) in client.may_be_ours[server.name] or any(
            (each.key, each.token) == (key, value) for each in under_way
        ):
            return True
    return False


def _is_owned(world: World, value: bytes) -> bool:
    return any(client.tokens.locker in value for client in [*world.clients, *world.past] if client.alive)
