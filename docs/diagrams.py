"""Draws the diagrams of the site and of README.md: ``python docs/diagrams.py`` writes ``docs/assets/*.svg``.

One look for all: a light panel of its own, so that they are readable on a dark page too; boxes for
processes and servers, chips for keys, arrows for connections. In those of ARCHITECTURE.md, boxes are states, or
objects with a line down from each, and the arrows between the lines are calls; names of the code are in ``MONO``.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

from asynclock.core.keys import Plain, Spread
from asynclock.core.slots import slot_of

ASSETS = Path(__file__).parent / "assets"

INK, SOFT, PANEL, WHITE = "#1f2933", "#5b6b7b", "#f3f5f8", "#ffffff"
BLUE, GREEN, AMBER, VIOLET, GREY = "#2f6db5", "#2e7d5b", "#a8620a", "#6b4fa0", "#66747f"
TINT = {BLUE: "#e3eefb", GREEN: "#e0f3ea", AMBER: "#fdf0dc", VIOLET: "#eee8f9", GREY: "#eef1f4"}
SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


class Drawing:
    """A panel of ``width`` by ``height``, filled from the top left."""

    def __init__(self, title: str, width: int, height: int) -> None:
        self.title, self.width, self.height = title, width, height
        self.parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 13,
        fill: str = INK,
        bold: bool = False,
        mono: bool = False,
        anchor: str = "middle",
        halo: bool = False,
    ) -> None:
        """``halo``: it is over lines, which are not to run through the words."""
        weight = ' font-weight="600"' if bold else ""
        if halo:
            weight += f' stroke="{PANEL}" stroke-width="5" stroke-linejoin="round" paint-order="stroke"'
        family = MONO if mono else SANS
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-family="{family}" fill="{fill}"'
            f' text-anchor="{anchor}"{weight}>{escape(words)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        title: str,
        *lines: str,
        color: str = BLUE,
        dashed: bool = False,
        holds: bool = False,
    ) -> None:
        """A process or a server: its name, and what there is to say of it; at the top, if it ``holds`` more."""
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="8" fill="{WHITE}"'
            f' stroke="{color}" stroke-width="1.6"{dash}/>'
        )
        top = y + 22 if holds else y + (h - 17 * len(lines)) / 2 + 4
        self.text(x + w / 2, top, title, size=14, bold=True, fill=color)
        for number, line in enumerate(lines):
            self.text(x + w / 2, top + 19 + 17 * number, line, size=12, fill=SOFT)

    def chip(self, x: float, y: float, w: float, words: str, *, color: str = AMBER, copy: bool = False) -> None:
        """A key; a replica's copy of one has a dashed edge."""
        dash = ' stroke-dasharray="3 3"' if copy else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="24" rx="12" fill="{TINT[color]}"'
            f' stroke="{color}" stroke-width="1.2"{dash}/>'
        )
        self.text(x + w / 2, y + 16, words, size=12, mono=True, fill=color)

    def bar(
        self, x: float, y: float, w: float, words: str, *, color: str, mono: bool = False, dashed: bool = False
    ) -> None:
        """Something that lasts, on a line of time."""
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="32" rx="6" fill="{TINT[color]}"'
            f' stroke="{color}" stroke-width="1.4"{dash}/>'
        )
        self.text(x + w / 2, y + 20, words, size=12, mono=mono, fill=color)

    def arrow(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        *,
        both: bool = False,
        dashed: bool = False,
        color: str = "ink",
    ) -> None:
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        start = f' marker-start="url(#{color})"' if both else ""
        stroke = SOFT if color == "ink" else GREEN
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{stroke}" stroke-width="1.6"{dash}'
            f'{start} marker-end="url(#{color})"/>'
        )

    def path(self, *points: tuple[float, float]) -> None:
        """An arrow with corners."""
        line = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(
            f'<polyline points="{line}" fill="none" stroke="{SOFT}" stroke-width="1.6" marker-end="url(#ink)"/>'
        )

    def svg(self) -> str:
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
            f' orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{fill}"/></marker>'
            for name, fill in (("ink", SOFT), ("push", GREEN))
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}"'
            f' width="{self.width}" height="{self.height}" role="img" aria-labelledby="title">\n'
            f'<title id="title">{escape(self.title)}</title>\n<defs>{heads}</defs>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="12" fill="{PANEL}"/>\n{body}\n</svg>\n'
        )


def loss() -> Drawing:
    d = Drawing(
        "A loss: the server pushes the news, the holder's work is cancelled, and the next one gets the lock", 860, 304
    )
    left, gone, told, has, end = 150, 400, 470, 590, 836  # x: the beginning, DEL, A is told, B has it, the end
    for y, name, what in (
        (60, "process A", "holds my_lock"),
        (164, "server", "keeps the key"),
        (244, "process B", "waits"),
    ):
        d.text(24, y, name, size=14, bold=True, anchor="start", fill=VIOLET if name == "server" else BLUE)
        d.text(24, y + 18, what, size=12, fill=SOFT, anchor="start")
    d.bar(left, 28, told - left, "body of the async with block", color=BLUE)
    d.bar(left, 68, told - left, "tasks of the scope", color=BLUE)
    d.text(told + 14, 49, "both cancelled, within a millisecond or two;", anchor="start")
    d.text(told + 14, 70, "then the block raises LockLostError,", anchor="start")
    d.text(told + 14, 91, 'with error.reason == "deleted"', anchor="start")
    d.bar(left, 152, gone - left, "asynclock:0:my_lock = A's value", color=AMBER, mono=True)
    d.text(gone + 8, 173, "DEL by anybody", bold=True, anchor="start")
    d.bar(has - 24, 152, end - has + 24, "asynclock:0:my_lock = B's value", color=AMBER, mono=True)
    d.bar(left, 232, has - left, "waits for my_lock, without polling", color=GREY, dashed=True)
    d.bar(has, 232, end - has, "body of the async with block", color=BLUE)
    d.arrow(gone, 150, told, 104, color="push")
    d.text(told - 14, 132, "push", size=12, fill=GREEN, anchor="start")
    d.arrow(gone, 186, told, 230, color="push")
    d.text(told - 14, 206, "push", size=12, fill=GREEN, anchor="start")
    d.arrow(told + 40, 230, has - 24, 188)
    d.text(has - 40, 216, "acquires", size=12, fill=SOFT, anchor="start")
    d.arrow(end - 110, 286, end - 34, 286)
    d.text(end, 290, "time", size=12, fill=SOFT, anchor="end")
    return d


def fencing() -> Drawing:
    d = Drawing(
        "A fencing token: a write that comes too late has a lower number than the one before, and is refused", 860, 292
    )
    left, lost, has, end = 150, 310, 430, 836  # x: the beginning, A has lost the lock, B has it, the end
    for y, name, what in (
        (60, "process A", "token 33"),
        (154, "database", "checks the number"),
        (244, "process B", "token 34"),
    ):
        d.text(24, y, name, size=14, bold=True, anchor="start", fill=VIOLET if name == "database" else BLUE)
        d.text(24, y + 18, what, size=12, fill=SOFT, anchor="start")
    d.bar(left, 46, lost - left, "holds my_lock", color=BLUE)
    d.bar(lost + 8, 46, 310, "stopped: the lock expires, and it does not know", color=GREY, dashed=True)
    d.bar(left, 142, 390, "fence = 33", color=AMBER, mono=True)
    d.bar(540, 142, end - 540, "fence = 34", color=AMBER, mono=True)
    d.bar(has, 232, end - has, "holds my_lock", color=BLUE)
    d.arrow(240, 80, 240, 140)
    d.text(248, 116, "writes with 33", size=12, fill=SOFT, anchor="start")
    d.arrow(520, 230, 540, 178)
    d.text(548, 212, "writes with 34", size=12, fill=SOFT, anchor="start")
    d.arrow(636, 80, 670, 140, dashed=True)
    d.text(680, 108, "the late write with 33:", anchor="start", size=12)
    d.text(680, 124, "refused, since 33 < 34", anchor="start", size=12, bold=True)
    d.arrow(end - 110, 280, end - 34, 280)
    d.text(end, 284, "time", size=12, fill=SOFT, anchor="end")
    return d


def several() -> Drawing:
    d = Drawing(
        "Several names: while it waits for b, it keeps a and gives c back; once b is free, the rest follows", 860, 292
    )
    left, tried, free, has, end = 190, 290, 560, 600, 836  # x: the beginning, the answers, b is free, it has all, end
    d.text(24, 30, 'with_context("c", "a", "b")', size=13, mono=True, anchor="start", fill=BLUE)
    d.text(left, 54, "one attempt for all, in one round trip", size=12, fill=SOFT, anchor="start")
    for y, name in ((66, "a"), (126, "b"), (186, "c")):
        d.text(150, y + 21, name, size=15, bold=True, anchor="start", mono=True, fill=AMBER)
    d.bar(left, 66, end - left, "held", color=BLUE)
    d.bar(left, 126, free - left, "held by another process: this one waits, for b alone", color=GREY, dashed=True)
    d.bar(has, 126, end - has, "held", color=BLUE)
    d.bar(left, 186, tried - left, "held", color=BLUE)
    d.bar(tried + 10, 186, free - tried - 10, "given back: free for others", color=GREEN, dashed=True)
    d.bar(has + 26, 186, end - has - 26, "held", color=BLUE)
    d.arrow(has + 26, 262, has + 26, 222)
    d.text(has + 14, 252, "the block begins, and holds all three", anchor="end", bold=True)
    d.arrow(40, 90, 40, 214)
    d.text(52, 150, "the agreed", size=12, fill=SOFT, anchor="start")
    d.text(52, 166, "order", size=12, fill=SOFT, anchor="start")
    d.arrow(end - 110, 280, end - 34, 280)
    d.text(end, 284, "time", size=12, fill=SOFT, anchor="end")
    return d


def semaphore() -> Drawing:
    d = Drawing(
        "A semaphore with five permits: each is a lock on one slot. Who wants one looks at all, and takes a free one",
        860,
        306,
    )
    d.text(24, 30, 'locker.semaphore("renderers", 5)', size=13, mono=True, anchor="start", fill=BLUE)
    for number, (who, color) in enumerate((("A", BLUE), ("B", BLUE), ("A", BLUE), ("", GREEN), ("C", BLUE))):
        x = 290 + 112 * number
        d.text(x + 48, 66, f"slot {number}", size=12, fill=SOFT)
        d.bar(x, 76, 96, f"held by {who}" if who else "free", color=color, dashed=not who)
    d.text(24, 97, "the servers", size=14, bold=True, anchor="start", fill=VIOLET)
    d.text(24, 181, "process D", size=14, bold=True, anchor="start", fill=BLUE)
    d.text(24, 199, "wants a permit", size=12, fill=SOFT, anchor="start")
    for number in range(5):
        d.arrow(440, 172, 338 + 112 * number, 114, dashed=number != 3, color="ink" if number != 3 else "push")
    d.text(440, 188, "a look at all slots: one round trip", size=12, fill=SOFT)
    d.text(716, 150, "then it takes this one", size=12, fill=GREEN, anchor="start")
    d.text(24, 259, "process E", size=14, bold=True, anchor="start", fill=BLUE)
    d.text(24, 277, "comes later, and waits", size=12, fill=SOFT, anchor="start")
    d.bar(
        290,
        248,
        544,
        "hears of every slot that is given back, expires or is lost, and takes it",
        color=GREY,
        dashed=True,
    )
    return d


def at_least() -> Drawing:
    d = Drawing(
        "A least time: the job takes 0.1 s, its lock stays until 3:01, and the hosts that come later do nothing",
        860,
        330,
    )
    starts, ends, late, later, free = 178, 290, 344, 500, 780
    for y, name, what in (
        (50, "host A", "clock 0.2 s ahead"),
        (116, "host B", "clock right"),
        (182, "host C", "clock 0.2 s behind"),
        (252, "server", "keeps the key"),
    ):
        d.text(24, y, name, size=14, bold=True, anchor="start", fill=VIOLET if name == "server" else BLUE)
        d.text(24, y + 18, what, size=12, fill=SOFT, anchor="start")
    d.bar(starts, 40, ends - starts, "runs the job", color=BLUE)
    d.text(ends + 12, 60, "leaves the block after 0.1 s, and waits for nothing", size=12, anchor="start")
    for x, y in ((late, 106), (later, 172)):
        d.bar(x, y, 124, "3:00 by its clock", color=GREY, dashed=True)
        d.arrow(x + 62, y + 34, x + 62, 236)
        d.text(x + 134, y + 20, "NotLockedError: does nothing", size=12, anchor="start")
    d.arrow(starts, 74, starts, 236)
    d.text(starts + 8, 222, "acquires", size=12, fill=SOFT, anchor="start")
    d.arrow(ends, 74, ends, 236)
    d.text(ends + 8, 222, "keep it", size=12, fill=SOFT, anchor="start")
    d.bar(starts, 240, free - starts, "asynclock:0:nightly-report = A's value", color=AMBER, mono=True)
    d.text(starts, 294, "3:00 by A's clock", size=12, fill=SOFT, anchor="start")
    d.text(836, 294, "at_least=60 is over: free", bold=True, anchor="end")
    d.arrow(726, 316, 802, 316)
    d.text(836, 320, "time", size=12, fill=SOFT, anchor="end")
    return d


def single() -> Drawing:
    d = Drawing("One server: the only key of my_lock lives on it", 760, 230)
    d.box(24, 28, 200, 70, "process A", "holds my_lock", color=BLUE)
    d.box(24, 132, 200, 70, "process B", "waits for my_lock", color=BLUE)
    d.box(500, 28, 236, 174, "server", "redis://host:6379/0", color=VIOLET, holds=True)
    d.chip(520, 104, 196, "asynclock:0:my_lock")
    d.text(618, 150, "value: A's own, expiry: 5 s", size=12, fill=SOFT)
    d.arrow(224, 63, 500, 63)
    d.text(362, 54, "acquire, extend, release", size=12, fill=SOFT)
    d.arrow(500, 167, 224, 167, color="push")
    d.text(362, 158, "push: the key changed", size=12, fill=GREEN)
    d.text(362, 184, "(A is told in the same way)", size=12, fill=SOFT)
    return d


def independent() -> Drawing:
    d = Drawing("Three independent servers: key i of my_lock lives on server i, and two of three are enough", 760, 330)
    d.box(24, 116, 200, 98, "process A", "holds my_lock", "with 2 or 3 of 3 keys", color=BLUE)
    for i, name in enumerate("abc"):
        y = 25 + 98 * i
        d.box(500, y, 236, 84, f"server {name}", color=VIOLET, holds=True)
        d.chip(520, y + 42, 196, f"asynclock:{i}:my_lock")
        d.arrow(224, 164 + 24 * (i - 1), 500, y + 42, both=True)
    d.text(362, 40, "one connection to each,", size=12, fill=SOFT)
    d.text(362, 57, "asked at the same time", size=12, fill=SOFT)
    d.text(362, 304, "no server knows of the others", size=12, fill=SOFT)
    return d


def cluster() -> Drawing:
    d = Drawing("A cluster of three shards: the hash of each key says which primary it lives on", 860, 402)
    d.box(280, 18, 300, 64, "process", "asks each primary for the keys it has", color=BLUE)
    names = (("my_lock", AMBER), ("cleanup", GREEN))
    for shard in range(3):
        x, first, last = 24 + 276 * shard, (0, 5461, 10923)[shard], (5460, 10922, 16383)[shard]
        d.box(x, 128, 260, 150, f"primary {shard + 1}", f"slots {first} to {last}", color=VIOLET, holds=True)
        d.box(x, 306, 260, 48, f"replica of {shard + 1}", "copies, a moment later", color=GREY, dashed=True)
        d.arrow(x + 130, 278, x + 130, 306, dashed=True)
        d.arrow(430 + 100 * (shard - 1), 82, x + 130, 128, both=True)
        here = [
            (f"asynclock:{i}:{name}", color)
            for name, color in names
            for i in range(3)
            if first <= slot_of(f"asynclock:{i}:{name}".encode()) <= last
        ]
        for row, (key, color) in enumerate(here):
            d.chip(x + 28, 182 + 31 * row, 204, key, color=color)
    d.text(
        430, 382, "my_lock has two keys on primary 1; cleanup has one on each. The hash decides.", size=12, fill=SOFT
    )
    return d


def spread() -> Drawing:
    d = Drawing("The keys of my_lock in a cluster: by chance, and with spread_keys one on each shard", 860, 404)
    name = b"my_lock"
    layouts = (
        ("spread_keys=False: by chance", Plain(b"asynclock", 3), AMBER, 74),
        ("spread_keys=True: one in each third", Spread(b"asynclock", 3), GREEN, 176),
    )
    firsts, lasts = (0, 5461, 10923), (5460, 10922, 16383)
    for shard, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        x = 24 + 276 * shard
        d.box(x, 18, 260, 222, f"primary {shard + 1}", color=VIOLET, holds=True)
        for words, layout, color, y in layouts:
            d.text(x + 130, y, words, size=12, fill=SOFT)
            here = [key for key in layout.keys(name) if first <= slot_of(key) <= last]
            for row, key in enumerate(here):
                d.chip(x + 10, y + 10 + 30 * row, 240, key.decode(), color=color)
            if not here:
                d.text(x + 130, y + 27, "none", size=12, fill=SOFT)

    # The same again, on a line of all slots.
    line = 300
    for first, last, shard in zip(firsts, lasts, range(3), strict=True):
        x = 24 + 276 * shard
        d.parts.append(f'<rect x="{x}" y="{line - 7}" width="260" height="14" rx="3" fill="{TINT[VIOLET]}"/>')
        d.text(x, line + 26, str(first), size=12, fill=SOFT, anchor="start")
        d.text(x + 260, line + 26, str(last), size=12, fill=SOFT, anchor="end")
        for _, layout, color, _ in layouts:
            for key in layout.keys(name):
                if first <= (slot := slot_of(key)) <= last:
                    at = x + 260 * (slot - first) / (last - first)
                    d.parts.append(f'<circle cx="{at:.0f}" cy="{line}" r="6" fill="{color}"/>')
                    if color == GREEN:
                        d.parts.append(
                            f'<path d="M {x} {line - 12} V {line - 20} H {at:.0f} V {line - 12}" fill="none"'
                            f' stroke="{GREEN}" stroke-width="1.4"/>'
                        )
                        d.text((x + at) / 2, line - 27, "d", size=13, bold=True, fill=GREEN)
    d.text(
        430,
        line + 60,
        "All slots, and where the keys are. The green ones are equally far (d) from the beginnings of",
        size=12,
        fill=SOFT,
    )
    d.text(
        430,
        line + 77,
        "their thirds, so there is a third of all slots between two of them. d comes from the name.",
        size=12,
        fill=SOFT,
    )
    return d


def sentinel() -> Drawing:
    d = Drawing("Sentinel: the key lives on the current primary; replicas receive a copy a moment later", 860, 380)
    d.box(24, 150, 190, 82, "process", "asks where mymaster is,", "then talks to the primary", color=BLUE)
    for i in range(3):
        d.box(330 + 176 * i, 22, 160, 50, f"Sentinel {i + 1}", "watches all servers", color=GREEN)
    d.arrow(180, 150, 330, 60, dashed=True)
    d.text(190, 84, "who is mymaster?", size=12, fill=SOFT)
    d.box(330, 142, 236, 98, "primary", color=VIOLET, holds=True)
    d.chip(350, 186, 196, "asynclock:0:my_lock")
    d.arrow(214, 191, 330, 191, both=True)
    for i in range(2):
        x = 290 + 280 * i
        d.box(x, 272, 250, 84, f"replica {i + 1}", color=GREY, dashed=True, holds=True)
        d.chip(x + 27, 312, 196, "asynclock:0:my_lock", color=GREY, copy=True)
        d.arrow(448 + (-20 + 70 * i), 240, x + 125, 272, dashed=True)
    d.text(590, 170, "when the primary is gone, the", size=12, fill=SOFT, anchor="start")
    d.text(590, 187, "Sentinels make a replica the", size=12, fill=SOFT, anchor="start")
    d.text(590, 204, "primary: with what it has by then", size=12, fill=SOFT, anchor="start")
    d.arrow(430, 72, 430, 142, dashed=True)
    return d


def existing_client() -> Drawing:
    d = Drawing("A client that the application has: the locker uses its settings, and connections of its own", 760, 268)
    d.box(24, 22, 300, 224, "your application", color=BLUE, holds=True)
    d.box(48, 62, 252, 66, "redis-py client", "your commands, its pool", color=GREY)
    d.box(48, 164, 252, 66, "Locker(client)", "its own connection", color=GREEN)
    d.arrow(174, 128, 174, 164, dashed=True)
    d.text(186, 151, "settings", size=12, fill=SOFT, anchor="start")
    d.box(500, 62, 236, 168, "server", "same address, user, database", color=VIOLET, holds=True)
    d.chip(520, 124, 196, "your keys", color=GREY)
    d.chip(520, 184, 196, "asynclock:0:my_lock")
    d.arrow(300, 95, 500, 132, both=True)
    d.arrow(300, 197, 500, 197, both=True)
    return d


def go() -> Drawing:
    d = Drawing("Go and Python services on the same three keys", 760, 262)
    d.box(24, 24, 236, 84, "Python service", "asynclock", 'key_prefix="rueidislock"', color=BLUE)
    d.box(24, 154, 236, 84, "Go service", "rueidislock", "KeyMajority: 2", color=GREEN)
    d.box(490, 24, 246, 214, "the same servers", "whichever deployment", color=VIOLET, holds=True)
    for i in range(3):
        d.chip(508, 92 + 44 * i, 210, f"rueidislock:{i}:my_lock")
    d.arrow(260, 66, 490, 104, both=True)
    d.arrow(260, 196, 490, 160, both=True)
    d.text(375, 138, "2 of 3 keys hold the lock,", size=12, fill=SOFT)
    d.text(375, 155, "whoever has them", size=12, fill=SOFT)
    return d


def lease() -> Drawing:
    d = Drawing("The life of a lease: its states, and what moves it from one to the next", 860, 462)

    def label(x: float, y: float, name: str, *lines: str, anchor: str = "middle") -> None:
        """Why, and in which method, from the top down to ``y``."""
        for number, line in enumerate(reversed(lines), 1):
            d.text(x, y - 16 * number, line, size=12, fill=SOFT, anchor=anchor)
        d.text(x, y, name, size=12, mono=True, anchor=anchor)

    def state(x: float, y: float, name: str, what: str, field: str, color: str) -> None:
        d.box(x, y, 184, 80, name, what, "", color=color)
        d.text(x + 92, y + 67, field, size=12, mono=True, fill=SOFT)

    d.parts.append(
        f'<rect x="296" y="16" width="548" height="288" rx="10" fill="{TINT[GREEN]}" stroke="{GREEN}"'
        ' stroke-width="1.4" stroke-dasharray="6 4"/>'
    )
    d.text(310, 290, "held:", size=14, bold=True, fill=GREEN, anchor="start")
    d.text(356, 290, "Room.holder", size=12, mono=True, fill=GREEN, anchor="start")
    state(20, 44, "attempt", "votes are requested", "Room.attempt", BLUE)
    state(316, 44, "unchecked", "no push would come yet", "Lease.untracked", GREEN)
    state(640, 44, "tracked", "pushed, and extended", "Lease.extend_at", GREEN)
    state(640, 212, "in doubt", "a key is read again", "Lease.unverified", AMBER)
    state(370, 364, "done", "its keys are released", "Lease.done", GREY)
    state(20, 364, "over", "every answer is there", "Lease.unreleased", GREY)
    d.arrow(204, 84, 316, 84)
    label(249, 74, "Room._decide", "a majority")
    d.arrow(500, 84, 640, 84)
    label(570, 74, "Room.first_check", "after 1 ms")
    d.arrow(800, 124, 800, 212)
    label(790, 188, "Lease.suspect", "a push:", anchor="end")
    d.arrow(664, 212, 664, 124)
    label(654, 166, "Lease._verified", "still ours:", anchor="end")
    d.path((296, 170), (264, 170), (264, 226), (296, 226))
    label(310, 218, "Room.release", "the next task here gets it,", "same lease, no command:", anchor="start")
    d.path((70, 124), (70, 338), (400, 338), (400, 364))
    label(80, 276, "Room._give_up", "refused, or servers", "have failed:", anchor="start")
    label(80, 316, "Room.leave", "nobody waits:", anchor="start")
    d.arrow(462, 304, 462, 364)
    label(472, 346, "Room.release", "the scope ends:", anchor="start")
    d.path((690, 304), (690, 404), (554, 404))
    label(700, 353, "Room._lose", "no majority, or the", "deadline is over:", anchor="start")
    label(700, 391, "Room.close", "the locker closes:", anchor="start")
    d.arrow(370, 404, 204, 404)
    label(287, 394, "Room.released", "all answered")
    return d


LANES = {  # of the two pictures below: the middle of each
    "your task": (70, BLUE, "scope.py"),
    "LockManager": (214, GREEN, "_engine/"),
    "Room, Lease": (358, AMBER, "core/"),
    "Node, Request": (502, VIOLET, "wire/"),
    "Connection": (646, VIOLET, "wire/"),
    "server": (790, GREY, "Redis, Valkey"),
}


class Journey(Drawing):
    """Calls between objects, from the top down."""

    def __init__(self, title: str) -> None:
        super().__init__(title, 860, 0)
        self.y = 92.0

    def svg(self) -> str:
        calls, self.height = self.parts, round(self.y)
        self.parts = [
            f'<line x1="{x}" y1="66" x2="{x}" y2="{self.height - 16}" stroke="{color}" opacity="0.45"/>'
            for x, color, _ in LANES.values()
        ]
        for name, (x, color, where) in LANES.items():
            self.box(x - 62, 16, 124, 52, name, where, color=color)
        self.parts += calls
        return super().svg()

    def chapter(self, words: str) -> None:
        self.parts.append(
            f'<rect x="8" y="{self.y - 13:g}" width="844" height="22" rx="6" fill="{TINT[GREY]}" stroke="none"/>'
        )
        self.text(18, self.y + 3, words, size=12, bold=True, anchor="start")
        self.y += 38

    def call(self, start: str, end: str, name: str, words: str = "", *, push: bool = False) -> None:
        """``name`` of the code above the arrow, ``words`` below it."""
        x1, x2 = LANES[start][0], LANES[end][0]
        step = 4 if x2 > x1 else -4
        self.arrow(x1 + step, self.y, x2 - step, self.y, color="push" if push else "ink")
        self.text((x1 + x2) / 2, self.y - 6, name, size=12, mono=True, halo=True)
        if words:
            self.text((x1 + x2) / 2, self.y + 15, words, size=12, fill=SOFT, halo=True)
        self.y += 46 if words else 34

    def inside(self, at: str, name: str, words: str = "") -> None:
        """What an object does by itself."""
        x = LANES[at][0]
        self.parts.append(f'<circle cx="{x}" cy="{self.y - 6:g}" r="5" fill="{LANES[at][1]}"/>')
        self.text(x + 12, self.y - 2, name, size=12, mono=True, anchor="start", halo=True)
        if words:
            self.text(x + 12, self.y + 14, words, size=12, fill=SOFT, anchor="start", halo=True)
        self.y += 46 if words else 34


def call() -> Drawing:
    d = Journey("The way of a call: a lock is acquired, held and released, hop by hop")
    d.chapter("acquire: async with locker.with_context(name)")
    d.inside("your task", "Acquisition.__aenter__", "awaits acquire(), in acquisition.py")
    d.call("your task", "LockManager", "LockManager.ready", "connects, once")
    d.call("your task", "Room, Lease", "Room.join", "of manager.rooms[name]")
    d.inside("Room, Lease", "Room._attempt", "makes a Lease, which asks for each key: Lease.request_all")
    d.call("Room, Lease", "Node, Request", "Requests.request", "finds the node")
    d.call("Node, Request", "Connection", "Connection.send", "bytes, a Request")
    d.inside("your task", "await Waiter.future", "the first await; until here, one call has led to the next")
    d.call("Connection", "server", "SET … NX PXAT", "one write a turn")
    d.call("server", "Connection", "+OK")
    d.call("Connection", "Node, Request", "Request.reply", "data_received")
    d.call("Node, Request", "Room, Lease", "Room.answered")
    d.inside("Room, Lease", "Lease.answered", "counts the vote; Room._decide: a majority, so this lease is the holder")
    d.call("Room, Lease", "LockManager", "LockManager.granted")
    d.call("LockManager", "your task", "Waiter.future", "is done")
    d.inside("your task", "LockScope", "is made; the body runs")
    d.chapter("hold: two calls by timers, as long as the lock is held")
    d.call("LockManager", "Room, Lease", "Room.first_check", "FirstCheck: once")
    d.call("Room, Lease", "server", "PTTL key, GET key", "Lease.request(READ): from now on the server tracks the key")
    d.call("LockManager", "Room, Lease", "Room.woken", "Timers: when due")
    d.call("Room, Lease", "server", "SET key token IFEQ token PXAT, GET key", "Lease.extend")
    d.chapter("release: the body is through")
    d.call("your task", "Room, Lease", "Room.release", "LockScope.__aexit__")
    d.call("Room, Lease", "server", "DELIFEQ key token", "Lease.release; the task awaits PendingReleases")
    d.call("server", "Room, Lease", "Room.released", "as every answer: data_received, Request.reply")
    d.call("Room, Lease", "LockManager", "Port.release_answered")
    d.call("LockManager", "your task", "PendingReleases", "the wait is over")
    return d


def push() -> Drawing:
    d = Journey("The way of a push: a key is deleted, and the body of its holder is cancelled, hop by hop")
    d.chapter("a key changes: doubt")
    d.call("server", "Connection", "invalidate [key]", "data_received", push=True)
    d.call("Connection", "Node, Request", "Node._pushed", push=True)
    d.call("Node, Request", "LockManager", "LockManager.invalidated", "key: which room, which index", push=True)
    d.call("LockManager", "Room, Lease", "Room.invalidated", push=True)
    d.inside("Room, Lease", "Lease.suspect", "the key is unverified until it was read")
    d.call("Room, Lease", "server", "PTTL key, GET key", "Lease.check: Lease.request(READ), or later (Port.pause)")
    d.chapter("the answer decides")
    d.call("server", "Connection", "nil", "data_received")
    d.call("Connection", "Node, Request", "Request.reply")
    d.call("Node, Request", "Room, Lease", "Room.answered")
    d.inside(
        "Room, Lease", "Lease.answered", "found another value than the token: the vote counts no more; Lease.why_lost"
    )
    d.inside("Room, Lease", "Room._judge", "no majority: Room._lose")
    d.chapter("the task is told")
    d.call("Room, Lease", "LockManager", "LockManager.lost", "reason, key")
    d.call("LockManager", "your task", "ScopeLink.lost", "of Lease.scope_ref")
    d.inside(
        "your task", "LockScope.lost_reason", "is set; the scope has its Block cancel tasks and body, from the loop"
    )
    d.call("Room, Lease", "server", "DELIFEQ key token", "Lease.release: only of keys that may still be ours")
    d.inside("your task", "LockScope.__aexit__", "waits for the tasks, for no server, and raises LockLostError")
    return d


DRAWINGS = {
    "loss": loss,
    "fencing": fencing,
    "several": several,
    "semaphore": semaphore,
    "at-least": at_least,
    "single": single,
    "independent": independent,
    "cluster": cluster,
    "spread": spread,
    "sentinel": sentinel,
    "existing-client": existing_client,
    "go": go,
    "lease": lease,
    "call": call,
    "push": push,
}


def main(into: Path = ASSETS) -> None:
    for name, draw in DRAWINGS.items():
        (into / f"{name}.svg").write_text(draw().svg())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
