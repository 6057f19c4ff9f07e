"""What counts as growth, and the chart of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import report
from tests.chaos.history import History, Sample

from .chart import draw
from .growth import ALLOWED, growth


def grown(by: float, files: int = 10) -> History:
    """20 minutes, of which the first five are the warm-up: it takes 40 MB more in them."""
    history = History()
    for second in range(0, 1200, 5):
        resident = 60e6 + (min(second, 300) / 300) * 40e6 + max(0, second - 300) / 900 * by * 100e6
        history.samples["w0-0"].append(Sample(float(second), int(resident), files if second else 10, 14))
    return history


@pytest.mark.parametrize(("by", "well"), [(0.0, True), (0.01, True), (0.03, False)])
def test_memory_counts_from_the_end_of_the_warm_up(by: float, well: bool) -> None:
    found = growth(grown(by), "w0-0")
    assert found.share == pytest.approx(by, abs=0.004)
    assert (found.share <= ALLOWED) == well


def test_descriptors_count_from_the_first_look() -> None:
    assert growth(grown(0.0), "w0-0").files == (10, 10)
    assert growth(grown(0.0, files=11), "w0-0").files == (10, 11)


def test_the_chart_shows_each_worker() -> None:
    svg = draw("a title & more", grown(0.0), 300.0)
    assert svg.startswith("<svg ") and "a title &amp; more" in svg
    assert svg.count("<polyline ") == 2  # its memory and its files


def test_what_cannot_be_written_is_known_before_the_hour(tmp_path: Path) -> None:
    report.writable(tmp_path / "new" / "a.json", None, tmp_path / "new" / "b" / "c.svg")
    assert (tmp_path / "new" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        report.writable(tmp_path / "file" / "a.json")
