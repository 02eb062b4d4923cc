"""One's own runs after the fact: listed, compared, drawn, and asked about images; on real runs of five batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.command import Outcome, done, run
from tests.support.datasets import keys_at
from tests.support.training import training

pytestmark = pytest.mark.slow  # starts whole trainings


@pytest.fixture(scope="module")
def runs(dataset: Path, module_folder: Path) -> Path:
    """A folder with a finished run and a finished one in a folder of an experiment, with another learning rate."""
    root = module_folder
    for folder, more in ((root, ()), (root / "study", ("optimizer.lr=0.01",))):
        done(*training(dataset, folder, "one", *more))
    return root


def sources(tree: Path, dataset: Path) -> list[Path]:
    """The files that the samples of val were made from, in stored order."""
    return [tree / "val" / key for key in keys_at(dataset / "val")]


def predictions(outcome: Outcome) -> list[dict[str, Any]]:
    """The JSON of `predict`."""
    found: list[dict[str, Any]] = json.loads(outcome.out)
    return found


def test_runs_are_listed_as_the_training_reported_them(runs: Path) -> None:
    listed = json.loads(done("runs", "ls", runs, "--json").out)
    assert [one["name"] for one in listed] == ["one", "study/one"]
    for one in listed:
        result = json.loads((Path(one["run"]) / "result.json").read_bytes())
        assert (one["state"], one["epoch"], one["epochs"], one["batch"]) == ("finished", 1, 1, 5)
        assert [one[name] for name in ("top1", "top5", "loss")] == [result[name] for name in ("top1", "top5", "loss")]
        assert one["best_top1"] == one["top1"]
        assert (one["starts"], one["checkpoint"]) == (1, "ep1-ba5.pt")
        assert one["images_per_second"] > 0
        assert one["hours"] > 0


def test_two_runs_differ_in_what_they_were_given(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = json.loads(done("runs", "compare", runs / "one", runs / "study/one", "--json", "--report", page).out)
    assert found["settings"] == [{"key": "optimizer.lr", "a": 0.1, "b": 0.01}]
    assert found["origins"] == []
    assert "optimizer.lr" in page.read_text(encoding="utf-8")


def test_a_page_in_the_folder_of_a_run_leaves_the_run_as_it_is(runs: Path) -> None:
    before = done("runs", "ls", runs, "--json").out
    done("runs", "report", runs / "one")
    assert (runs / "one" / "report.html").is_file()
    assert done("runs", "ls", runs, "--json").out == before


def test_images_are_predicted_as_the_validation_of_the_run_sees_them(
    runs: Path, dataset: Path, tree: Path, tmp_path: Path
) -> None:
    """The share of source files that `predict` has right is the top-1 of `eval` on the samples made from them."""
    images = sources(tree, dataset)
    found = predictions(done("predict", runs / "one", *images, "--json"))
    assert [one["image"] for one in found] == [str(image) for image in images]
    for one in found:
        shares = [guess["probability"] for guess in one["predictions"]]
        assert len(shares) == 5
        assert shares == sorted(shares, reverse=True)
    right = [one["predictions"][0]["class"] == image.parent.name for one, image in zip(found, images, strict=True)]
    among = [
        image.parent.name in [guess["class"] for guess in one["predictions"]]
        for one, image in zip(found, images, strict=True)
    ]
    evaluated = json.loads(done("eval", runs / "one", "--data", dataset, "--json").out)
    assert float(np.mean(right)) == pytest.approx(evaluated["top1"])
    assert float(np.mean(among)) == pytest.approx(evaluated["top5"])


def test_names_for_people_are_printed_and_unreadable_images_end_with_status_1(
    runs: Path, dataset: Path, tree: Path, tmp_path: Path
) -> None:
    image = sources(tree, dataset)[0]
    (tmp_path / "text.jpg").write_text("no image", encoding="utf-8")
    (tmp_path / "cut.jpg").write_bytes(image.read_bytes()[:-200])
    Image.new("CMYK", (40, 50)).save(tmp_path / "cmyk.jpg")
    Image.new("I;16", (50, 40), 40_000).save(tmp_path / "gray.png")
    names = ("none.jpg", "text.jpg", "cut.jpg", "cmyk.jpg", "gray.png")
    checkpoint = runs / "one" / "checkpoints" / "ep1-ba5.pt"
    outcome = run("predict", checkpoint, image, *(tmp_path / name for name in names), tmp_path, "--data", dataset)
    assert outcome.status == 1
    lines = outcome.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        *(str(image), f"{tmp_path}/cmyk.jpg", f"{tmp_path}/gray.png")
    ]
    assert len(lines) == 3 * 6
    assert all("%  " in line and line.endswith(")") for line in lines if line.startswith(" "))
    assert outcome.err.splitlines()[:2] == [
        f"imagenet-mds: {tmp_path}/none.jpg cannot be read: No such file or directory",
        f"imagenet-mds: {tmp_path}/text.jpg cannot be read: no image that can be read",
    ]
    assert outcome.err.splitlines()[2].startswith(f"imagenet-mds: {tmp_path}/cut.jpg cannot be read: ")
    assert outcome.err.splitlines()[3:] == [f"imagenet-mds: {tmp_path} cannot be read: Is a directory"]
    as_json = run("predict", runs / "one", tmp_path / "none.jpg", "--json")
    assert (as_json.status, predictions(as_json)) == (
        1,
        [{"image": f"{tmp_path}/none.jpg", "error": "No such file or directory"}],
    )


def test_a_mistake_is_one_line(runs: Path, dataset: Path, few_classes: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"none")
    for arguments, words in (
        (("predict", tmp_path / "none", "a.jpg"), f"there is no checkpoint at {tmp_path}/none"),
        (("predict", tmp_path / "weights.pt", "a.jpg"), "weights.pt cannot be read as tensors of torch"),
        (("predict", runs / "one", "a.jpg", "--data", tmp_path / "none"), "there is no dataset at"),
        (("predict", runs / "one", "a.jpg", "--data", few_classes), "knows 10 classes and"),
        (("predict", runs / "one"), "Missing argument"),
        (("runs", "compare", runs / "one", runs / "study"), f"there is no run at {runs}/study"),
    ):
        outcome = run(*arguments)
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome.err
        assert words in outcome.err
