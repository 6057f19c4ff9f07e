"""Draws the diagrams of the site and of README.md: ``python docs/diagrams.py`` writes ``docs/assets/*.svg``.

One look for all: a light panel of its own, so that they are readable on a dark page too; boxes for
processes and servers, chips for keys, arrows for connections.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

from redis.crc import key_slot

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
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
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
            if first <= key_slot(f"asynclock:{i}:{name}".encode()) <= last
        ]
        for row, (key, color) in enumerate(here):
            d.chip(x + 28, 182 + 31 * row, 204, key, color=color)
    d.text(
        430, 382, "my_lock has two keys on primary 1; cleanup has one on each. The hash decides.", size=12, fill=SOFT
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


DRAWINGS = {
    "loss": loss,
    "single": single,
    "independent": independent,
    "cluster": cluster,
    "sentinel": sentinel,
    "existing-client": existing_client,
    "go": go,
}


def main(into: Path = ASSETS) -> None:
    for name, draw in DRAWINGS.items():
        (into / f"{name}.svg").write_text(draw().svg())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
