"""Pages about runs: self-contained, whatever the run has and is called."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds_train.history.comparison import Comparison
from imagenet_mds_train.history.figures import refuse_page
from imagenet_mds_train.history.page import write_comparison_page, write_run_page
from imagenet_mds_train.history.plots import comparison_figure, run_figure
from imagenet_mds_train.history.runs import Run
from tests.support.runs import KILLED_AND_CONTINUED, event, line, write_run

pytestmark = pytest.mark.slow  # drawing takes seconds

LONG = [event("start", 1, 0, 0), *(line(1, batch, batch, loss=float(batch % 7)) for batch in range(1, 5001))]


def assert_self_contained(page: str) -> None:
    """Nothing is run and nothing is loaded: addresses are names of XML namespaces or point into the page."""
    assert "<script" not in page
    assert not re.search(r"<(link|img|iframe|object|embed|image)\b", page)
    assert not re.search(r"@import|@font-face", page)
    loaded = re.findall(r"(?:href|src)\s*=\s*[\"']([^\"']*)", page) + re.findall(r"url\(([^)]*)\)", page)
    assert [one for one in loaded if not one.startswith("#")] == []


def lead_of(page: Path) -> str:
    """The first paragraph of a page."""
    return page.read_text(encoding="utf-8").partition('<p class="lead">')[2].partition("</p>")[0]


def test_the_page_of_a_run_has_its_curves_starts_figures_and_settings(tmp_path: Path) -> None:
    run = Run.read(write_run(tmp_path / "run", KILLED_AND_CONTINUED, "optimizer.lr=0.125"))
    write_run_page(run, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert_self_contained(page)
    assert page.count("<svg") == 1
    assert "<h1>run: stopped, 50.00% top-1</h1>" in page
    assert "<td>killed or failed</td>" in page
    assert "<td>stopped</td>" in page
    assert "<code>optimizer.lr</code></td><td><code>0.125</code>" in page
    assert "<code>dataset.train</code></td><td><code>aaaa</code>" in page
    write_run_page(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_the_ends_of_starts_and_repeated_batches_are_marked(tmp_path: Path) -> None:
    axes: Any = run_figure(Run.read(write_run(tmp_path / "run", KILLED_AND_CONTINUED))).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["logged", "smoothed", "repeated", "killed or failed", "stopped"]
    marked = {line.get_label(): line.get_xdata()[0] for line in axes.lines[2:]}
    assert marked == {"killed or failed": 13, "stopped": 30}


def test_a_page_names_the_dataset_the_experiment_and_the_costs_that_are_known(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", KILLED_AND_CONTINUED, "logging.dollars_per_hour=6")
    job = {"train": {"folder": "/cache/train", "remote": "s3://b/<mds>/train"}, "experiment": "lr & size"}
    (folder / "job.json").write_text(json.dumps(job))
    write_run_page(Run.read(folder), tmp_path / "page.html")
    assert lead_of(tmp_path / "page.html") == (
        "3 of 10 epochs, 30 batches in 0.62 hours for $3.70. Dataset: s3://b/&lt;mds&gt;. Experiment: lr &amp; size."
    )
    job["train"] = {"folder": "/data/mds/train", "remote": None}
    (folder / "job.json").write_text(json.dumps(job))
    assert Run.read(folder).dataset == "/data/mds"


def test_a_page_lists_the_notices_of_an_interruption(tmp_path: Path) -> None:
    notice = event("notice", 2, 20, 12, kind="stop", text="Spot notice: <this> instance will be stopped")
    write_run_page(Run.read(write_run(tmp_path / "run", [*KILLED_AND_CONTINUED, notice])), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<td>2023-11-14 22:33:20</td><td>Spot notice: &lt;this&gt; instance will be stopped</td>" in page
    write_run_page(Run.read(write_run(tmp_path / "none", KILLED_AND_CONTINUED)), tmp_path / "page.html")
    assert "Notices" not in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"train": []}'])
def test_a_run_has_a_page_without_its_job(tmp_path: Path, content: bytes) -> None:
    folder = write_run(tmp_path / "run", KILLED_AND_CONTINUED)
    (folder / "job.json").write_bytes(content)
    write_run_page(Run.read(folder), tmp_path / "page.html")
    assert lead_of(tmp_path / "page.html") == "3 of 10 epochs, 30 batches in 0.62 hours."


def test_the_learning_rate_is_drawn_at_the_batches_that_were_trained_with_it(tmp_path: Path) -> None:
    """A line of the log has the rate of the batch after it, and that of the last line is no batch's."""
    run = Run.read(
        write_run(tmp_path / "run", [event("start", 1, 0, 0), *(line(1, n, n, next_lr=n) for n in (1, 2, 3))])
    )
    rate: Any = run_figure(run).axes[1].lines[0]
    assert list(rate.get_xdata()) == [2, 3]
    assert list(rate.get_ydata()) == [1, 2]


def test_the_page_of_two_runs_has_their_differences(tmp_path: Path) -> None:
    a = Run.read(write_run(tmp_path / "a", KILLED_AND_CONTINUED))
    b = Run.read(write_run(tmp_path / "b", KILLED_AND_CONTINUED[:20], "seed=3"))
    write_comparison_page(Comparison.of(a, b), ("a", "b"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert_self_contained(page)
    assert "<code>seed</code></td><td><code>17</code></td><td><code>3</code>" in page
    write_comparison_page(Comparison.of(a, a), ("a", "a"), tmp_path / "same.html")
    assert "No setting differs, nor does the dataset." in (tmp_path / "same.html").read_text(encoding="utf-8")


def test_losses_are_over_the_images_seen_and_accuracy_over_epochs_and_hours(tmp_path: Path) -> None:
    a = Run.read(write_run(tmp_path / "a", KILLED_AND_CONTINUED))
    b = Run.read(write_run(tmp_path / "b", KILLED_AND_CONTINUED, "global_batch_size=64"))
    panels: list[Any] = comparison_figure(a, b, ("a", "b")).axes
    loss, epochs, hours = panels
    assert [max(line.get_xdata()) for line in loss.lines] == [30 * 32, 30 * 32, 30 * 64, 30 * 64]
    assert [list(line.get_xdata()) for line in epochs.lines] == [[1, 2, 3], [1, 2, 3]]
    assert list(epochs.lines[0].get_ydata()) == pytest.approx([40, 60, 50])
    assert list(hours.lines[0].get_xdata()) == pytest.approx([10.5 / 60, 24 / 60, 35 / 60])


@pytest.mark.parametrize(
    "events",
    [
        [],
        [event("start", 1, 0, 0)],
        [event("start", 1, 0, 0), line(1, 1, 1)],
        [event("start", 1, 0, 0), line(1, 1, 1, loss=None, images_per_second=0.0)],
    ],
)
def test_a_run_that_has_hardly_begun_has_a_page(tmp_path: Path, events: list[dict[str, object]]) -> None:
    run = Run.read(write_run(tmp_path / "run", events))
    write_run_page(run, tmp_path / "page.html")
    write_comparison_page(Comparison.of(run, run), ("run", "run"), tmp_path / "two.html")


def test_a_long_run_is_drawn_by_its_extremes(tmp_path: Path) -> None:
    curves: list[Any] = list(run_figure(Run.read(write_run(tmp_path / "run", LONG))).axes[0].lines)
    raw, smoothed, *_ = curves
    assert len(raw.get_xdata()) <= 1500
    assert (min(raw.get_ydata()), max(raw.get_ydata())) == (0.0, 6.0)
    assert (raw.get_xdata()[0], raw.get_xdata()[-1]) == (1, 5000)
    assert list(raw.get_xdata()) == sorted(raw.get_xdata())
    assert min(smoothed.get_ydata()) > 2.8
    assert max(smoothed.get_ydata()) < 3.2


@pytest.mark.parametrize("name", ["<b>&$x$", "_low", "$", "\u732b", "a\nb\x1b[31m", "caf\udce9"])
def test_names_are_shown_as_they_are_or_escaped(tmp_path: Path, name: str) -> None:
    run = Run.read(write_run(tmp_path / name, KILLED_AND_CONTINUED))
    write_run_page(run, tmp_path / "page.html")
    write_comparison_page(Comparison.of(run, run), (name, name), tmp_path / "two.html")
    for page in ("page.html", "two.html"):
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert_self_contained(text)
        assert "<b>" not in text
        assert "\x1b" not in text


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    run = Run.read(write_run(tmp_path / "run"))
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match=r"folder\.html cannot be written: "):
        write_run_page(run, tmp_path / "folder.html")
    with pytest.raises(UserError, match=r"--report .*run\.json: pass a file that ends in \.html"):
        refuse_page(tmp_path / "run" / "run.json", "--report")
    with pytest.raises(UserError, match=r"FILE .*there is no folder "):
        refuse_page(tmp_path / "none" / "page.html", "FILE")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder.html", "run"]
