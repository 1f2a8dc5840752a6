"""What is kept of long searches, and the page that is written from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitpress.benchmarks import claims, searches
from bitpress.core.errors import CheckFailed
from bitpress.core.search import search


def test_the_front_joins_the_points_that_are_one() -> None:
    points = [(1.614, 91.4), (0.841, 90.96), (0.455, 88.07), (0.842, 89.0), (0.841, 89.3)]  # two of equal BOPs
    assert searches.front_at(points, 0.841) == pytest.approx(90.96)
    assert searches.front_at(points, 1.0) == pytest.approx(91.077, abs=1e-3)  # a line over ln BOPs
    assert searches.front_at(points, 0.7) == pytest.approx(90.10, abs=5e-3)
    assert searches.front_at(points, 0.3) is None
    assert searches.front_at(points, 1.62) == pytest.approx(91.4)  # within what ends and rounding move


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searches") / "run"
    search(
        "digits_cnn", data="digits", out=folder, budgets=["bops=4%"], epochs_float=1, epochs_search=2,
        epochs_finetune=1, seed=3, threads=1,
    )  # fmt: skip
    return folder


def test_a_run_is_checked_kept_and_told_without_paths(run: Path, tmp_path: Path) -> None:
    settings = json.loads((run / "run.json").read_text())
    (kept,) = _kept(run, tmp_path)
    assert kept.name == "digits-4"
    assert kept.epochs == 3
    assert kept.checks["predictions_sha256"] == kept.result["predictions_sha256"]
    assert 0 < kept.checks["used"]["bops=4%"] <= 1
    assert {path.name for path in (tmp_path / "digits-4").iterdir()} == {
        "run.json", "result.json", "plan.json", "events.jsonl", "checks.json",
    }  # fmt: skip
    page = searches.table([kept])
    assert f"{kept.result['top1']:.2f}" in page
    assert "conv2 w" in page
    assert f"`{searches.command(kept)}`. By hand." in page
    assert f"--epochs-search {settings['epochs_search']}" in searches.command(kept)


def test_the_command_of_a_stored_run_says_what_its_method_takes(run: Path, tmp_path: Path) -> None:
    (kept,) = _kept(run, tmp_path)
    settings = {**kept.settings, "method": "djpq", "variant": "", "mode": "", "restrict": "free", "convention": "djpq"}
    told = replace(kept, settings=settings)
    assert "--method djpq --restrict free --convention djpq" in searches.command(told)
    assert "--lr-thresholds" not in searches.command(told)
    assert "--lr-thresholds" in searches.command(kept)
    assert told.label == "djpq free in convention djpq"
    points = [
        replace(kept, settings={**settings, "method": "uniform", "convention": "sbs"}, result={**kept.result, **moved})
        for moved in ({"top1": 1.0, "bops_ratio": 1e9}, {"top1": 2.0, "bops_ratio": 1.0})
    ]
    assert searches._against_front(told, points) is None
    assert searches._against_front(replace(told, settings={**settings, "convention": "sbs"}), points) is not None
    best = {**kept.result, "top1": 3.0, "bops_ratio": 1.0}
    sbs = replace(told, settings={**settings, "convention": "sbs"}, result=best)
    seeds = [replace(points[1], result={**points[1].result, "top1": top}) for top in (2.0, 3.0)]
    assert searches._against_front(sbs, seeds) == "+0.50", "seeds of the same widths count as their mean"
    for parts in ("sbs", "djpq"):
        stages = {**kept.settings, "method": "two-stage", "variant": "", "bits": "w8a8", "stages_of": parts}
        stages["prune_share"] = 0.5
        told = replace(kept, settings=stages)
        assert ("--stages-of djpq" in searches.command(told)) == (parts == "djpq")
        assert ("--lr-thresholds" in searches.command(told)) == (parts == "sbs")
        assert "--prune-share 0.5 " in searches.command(told)
        assert told.label == ("two-stage joint w8a8" if parts == "sbs" else "two-stage djpq joint w8a8")
    settings = {**settings, "method": "ajpq", "restrict": "", "convention": "sbs", "filters": "fixed:4", "episodes": 60}
    told = replace(kept, settings=settings)
    assert "--method ajpq --precision fixed:4 --episodes 60" in searches.command(told)
    assert "--lr-thresholds" not in searches.command(told)
    assert told.label == "ajpq fixed:4"
    assert "--distill" not in searches.command(told)
    assert "--distill 0.9 " in searches.command(replace(kept, settings={**settings, "distill": 0.9}))


def test_layers_whose_filters_differ_are_counted_as_mixed(run: Path, tmp_path: Path) -> None:
    (kept,) = _kept(run, tmp_path)
    layers = [{"w_bits": w, "a_bits": 4} for w in (8, 2, None, 4, 8)]
    assert searches._widths(replace(kept, checks={"layers": layers})) == "1 1 0 + 1 mixed / 0 3 0"


def test_seeds_count_once_and_each_with_its_last_run(run: Path, tmp_path: Path) -> None:
    (kept,) = _kept(run, tmp_path)

    def other(seed: int, top1: float, date: str) -> searches.Kept:
        settings, result = {**kept.settings, "seed": seed}, {**kept.result, "top1": top1}
        checks = {**kept.checks, "date": date[:10], "time": date}
        if len(date) == 10:
            del checks["time"]  # as older ones are kept
        return replace(kept, settings=settings, result=result, checks=checks)

    first, later = other(0, 10.0, "2026-01-01"), other(0, 80.0, "2026-01-02")
    assert searches._seeds([first, later]) == []
    assert "| 2 | 81.00 ± 1.41 |" in searches._seeds([later, other(1, 82.0, "2026-01-01"), first])[-1]
    evening = other(0, 84.0, "2026-01-02T20:00:00+00:00")
    assert "| 2 | 83.00 ± 1.41 |" in searches._seeds([evening, later, other(1, 82.0, "2026-01-01"), first])[-1]


def test_a_budget_of_any_kind_is_used_to_a_share() -> None:
    result = {
        "bops": 10, "bops_fp32": 1000, "weight_bytes": 30, "fp32_bytes": 400, "latency": 0.4,
        "latency_table": {"w8a8": 1.0},
    }  # fmt: skip
    shares = [searches.used(text, result) for text in ("bops=2%", "size=40B", "latency=50%", "latency=0.5ms")]
    assert shares == pytest.approx([0.5, 0.75, 0.8, 0.8])


def test_paths_of_this_host_are_not_kept() -> None:
    assert searches._homeless({"data": "cifar10:/some/where"}) == {"data": "cifar10:DIR"}
    assert searches._homeless({"data": "digits"}) == {"data": "digits"}


def test_a_result_that_the_artifact_does_not_bear_out_is_not_kept(run: Path, tmp_path: Path) -> None:
    path = run / "result.json"
    document: dict[str, Any] = json.loads(path.read_text())
    try:
        path.write_text(json.dumps({**document, "predictions_sha256": "0" * 64}))
        with pytest.raises(CheckFailed, match="eval differs from the search"):
            searches.keep("wrong", run, store=tmp_path)
    finally:
        path.write_text(json.dumps(document))
    assert not (tmp_path / "wrong").exists()


def test_what_cannot_be_read_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert searches.main(["keep", "Bad Name", "nowhere"]) == 2
    assert "lower-case" in capsys.readouterr().err
    assert searches.main([]) == 2
    assert "usage:" in capsys.readouterr().err


def _kept(run: Path, store: Path) -> list[searches.Kept]:
    searches.keep("digits-4", run, note="By hand.", store=store)
    return searches.stored(store)


def test_ajpq_s_claims_stand_beside_what_kept_runs_found(run: Path, tmp_path: Path) -> None:
    (kept,) = _kept(run, tmp_path)
    layers = [{**row, "macs": 1000} for row in kept.checks["layers"]]
    told = {
        **kept.result, "top1": None, "baseline_top1": None, "iou": 0.625, "baseline_iou": 0.5, "fp32_bytes": 600,
        "weight_bytes": 100, "bops_fp32": 2 * 1024 * 1000 * len(layers),
    }  # fmt: skip
    settings = {**kept.settings, "method": "ajpq", "model": "skynet", "filters": "fixed:8", "episodes": 6}
    settings["held_images"] = 40
    detector = replace(kept, settings=settings, result=told, checks={**kept.checks, "layers": layers})
    assert (detector.metric, detector.accuracy, detector.baseline) == ("iou", 62.5, 50)
    page = claims.page([kept, detector])
    paper, ours = (line for line in page.splitlines() if line.startswith("| ") and "fixed" in line)
    assert "| > 5 | 2 |" in paper and "IoU slightly better" in paper
    assert "| fixed:8 | 100 | 6.00 | 2.00 |" in ours and "| IoU +12.50 | IoU 62.50 of 50.00 % |" in ours
    assert "--held-images 40" in page and "40 judged 0 episodes" in page
    assert "sbs" not in page  # whose run says nothing of these claims
    assert "IoU %" in searches.table([detector]) and "62.50" in searches.table([detector])
    photographs = {**kept.result, "top1": 60.0, "baseline_top1": 62.0, "top5": 80.5, "baseline_top5": 81.0}
    settings = {**settings, "model": "mobilenet_v1_075", "filters": "mixed"}
    page = claims.page([replace(kept, settings=settings, result=photographs)])
    assert "top-5 -0.50, top-1 -2.00" in page
    assert claims.page([replace(kept, settings={**settings, "filters": "fixed:4"})]).count("](searches/digits-4)") == 0
