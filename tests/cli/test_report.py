"""`report`: figures that other verbs give too, what is missing named, a page that a browser opens without complaint."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitpress.core.bops import count
from bitpress.core.rundir import RESULT, TENSORS, load_run, read_json, read_tensors, write_json, write_tensors
from bitpress.page import render
from bitpress.reporting import Measuring, front, report
from bitpress.reporting.layers import roofs

from ..schema.schemas import check
from .chromium import chromium, opened
from .test_compile import BLOBS, CHAIN, PTQ
from .tool import bitpress, good, refused

QUICK = ("--seconds", "0.05", "--vs", "")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A searched RUN, a post-training RUN with its artifact, and the page and document of the searched one."""
    folder = tmp_path_factory.mktemp("report")
    epochs = ("--epochs-float", "1", "--epochs-search", "2", "--epochs-finetune", "1")
    good("search", CHAIN, "--data", BLOBS, "--budget", "bops=10%", "--out", folder / "run", *epochs)
    good("compile", CHAIN, *PTQ, "--run", folder / "ptq", "-o", folder / "ptq.bpk")
    good("report", folder / "run", "-o", folder / "run.html", "--json", folder / "run.json", *QUICK)
    return folder


def document(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def gathered(source: Path, *, data: str | None = None, **more: Any) -> Any:
    """The document without a page, which takes two seconds to draw; valid by its schema."""
    found = report(source, measuring=Measuring(data, (), seconds=0.05), **more)
    return check(json.loads(json.dumps(found, allow_nan=False)))


def test_a_run_has_every_part(made: Path) -> None:
    found, result = check(document(made / "run.json")), read_json(made / "run" / RESULT)
    assert found["kind"] == "run" and found["verify"]["exact"] and "torch" in found["verify"]["stages"]
    assert found["accuracy"]["top1"] == result["top1"] and found["accuracy"]["agrees"] is True
    points = {point["role"]: point for point in found["front"]}
    assert points["this"]["bops"] == result["bops"] and points["fp32"]["bops"] == result["bops_fp32"]
    assert points["fp32"]["top1"] == result["baseline_top1"]
    assert points["int8"]["bops"] == result["bops_fp32"] // 16  # 8 x 8 of 32 x 32 bits
    assert found["quantisers"] == found["ratios"] == []
    assert [curve["phase"] for curve in found["curves"]] == ["float", "search", "finetune"]
    assert [len(curve["series"]["val_top1"]) for curve in found["curves"]] == [1, 2, 1]
    assert sum(row["bops"] for row in found["layers"]) == found["totals"]["bops"] == result["bops"]


def test_what_quantisers_and_gates_of_djpq_learned_is_told(tmp_path: Path) -> None:
    epochs = ("--epochs-float", "1", "--epochs-search", "2", "--epochs-finetune", "1")
    good("search", CHAIN, "--data", BLOBS, "--method", "djpq", "--budget", "bops=5%", "--out", tmp_path / "r", *epochs)
    found = gathered(tmp_path / "r", data=BLOBS)
    rows = {(row["layer"], row["side"]): row for row in found["quantisers"]}
    assert {side for _, side in rows} == {"w", "a"}
    assert any(row["d"][0] != row["d"][1] and row["q_m"][0] != row["q_m"][1] for row in rows.values())
    assert {row["restricted"] for row in rows.values()} <= {2, 4, 8}
    assert found["ratios"] and all(row["least"] <= row["median"] <= row["most"] for row in found["ratios"])
    shown = render(found)
    assert "What quantisers and gates learned" in shown and f"{found['quantisers'][0]['d'][1]:.4g}" in shown


def test_the_baseline_of_eight_bits_is_what_compile_and_eval_give(tmp_path: Path) -> None:
    """The same float network, calibrated on the same data, by the verbs."""
    bits = ("--quantize", "w8a8", "--calibrate", BLOBS)
    good("compile", CHAIN, *bits, "-o", tmp_path / "x.bpk", "--run", tmp_path / "r")
    found = gathered(tmp_path / "r", data=BLOBS)
    top1 = good("eval", tmp_path / "x.bpk", "--data", BLOBS, "--json", "-").document()["top1"]
    points = {point["role"]: point for point in found["front"]}
    assert points["int8"]["top1"] == points["this"]["top1"] == top1
    assert points["int8"]["bops"] == points["this"]["bops"]
    assert points["fp32"]["top1"] is not None  # result.json of such a RUN has none: it was counted
    assert found["curves"] == [] and "search curves" in {row["what"] for row in found["missing"]}


def test_an_artifact_says_what_it_does_not_hold(made: Path, tmp_path: Path) -> None:
    random = ("--quantize", "w4a4", "--calibrate", "random:8", "--run", tmp_path / "run")
    good("compile", CHAIN, *random, "-o", tmp_path / "x.bpk")
    doc = good("report", tmp_path / "x.bpk", "-o", tmp_path / "x.html", "--json", "-", *QUICK).document()
    missing = {row["what"]: row["remedy"] for row in doc["missing"]}
    assert doc["kind"] == "artifact" and doc["front"] == [] and doc["curves"] == [] and doc["accuracy"] is None
    assert missing["search curves"] == missing["float and 8-bit baselines"] == "--against RUN"
    assert missing["accuracy"] == "--data DATA"
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "There are no curves." in page and "an artifact does not hold the events of its search" in page
    doc = gathered(tmp_path / "x.bpk", against=tmp_path / "run", data=BLOBS)
    assert {point["role"] for point in doc["front"]} == {"this", "fp32", "int8"}
    assert "torch" in doc["verify"]["stages"]
    assert "cannot read" in refused(2, "report", made / "none.bpk", "-o", tmp_path / "z.html")


def test_other_runs_are_points_of_the_front(made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made / "run", tmp_path / "other"))
    args = ("report", made / "run", "-o", tmp_path / "x.html", *QUICK)
    found = gathered(made / "run", others=(other,))
    (point,) = [point for point in found["front"] if point["role"] == "other"]
    assert point["name"] == "other" and point["bops"] == found["front"][0]["bops"]
    result, run = read_json(other / RESULT), load_run(other)
    counted = count(run.graph, run.plan, convention="weights-only").totals.bops
    for change, says in (
        ({"data": "digits"}, "no common front"), ({"n": 59}, "no common front"), ({"bops": 1}, "older than its plan"),
        ({"bops_convention": "weights-only", "bops": counted}, "of the convention weights-only, here sbs"),
    ):  # fmt: skip
        write_json(other / RESULT, {**result, **change})
        assert says in refused(2, *args, "--with", other), change
    assert "no RUN" in refused(2, *args, "--with", tmp_path)


def test_the_front_joins_what_nothing_beats() -> None:
    found = ((90.0, 5), (91.0, 9), (90.0, 6), (90.0, 5))
    points = [{"top1": top1, "bops": bops} for top1, bops in found]
    assert [point["best"] for point in front(points)] == [True, True, False, True]


@pytest.mark.native
def test_time_is_set_against_bops(made: Path) -> None:
    found = document(made / "run.json")
    if found["host"]["isa"] == "reference":
        pytest.skip("numpy runs, which has no clock inside")
    rows, correlation = found["layers"], found["correlation"]
    costs = [row["median"] / row["bops"] for row in rows]
    assert [row["relative"] for row in rows] == pytest.approx([cost / sorted(costs)[1] for cost in costs])
    order = np.argsort(np.argsort([row["bops"] for row in rows])), np.argsort(np.argsort([r["median"] for r in rows]))
    assert correlation["rank"] == pytest.approx(np.corrcoef(*order)[0, 1])
    named = {one["name"] for one in correlation["outliers"]}
    assert named == {row["name"] for row in rows if not 0.5 < row["relative"] < 2}
    assert all(row["rate"] == pytest.approx(1e3 * row["macs"] / row["median"]) for row in rows)
    assert found["roofs"]["bytes_per_second"] > 0


def test_a_bit_serial_roof_is_one_for_each_pair_of_widths() -> None:
    """Its instructions multiply bits: w2a2 has four of them a MAC, w4a4 sixteen; bit-sliced ones count additions."""
    rates = {"bytes_per_second": 1e9, "bitserial_avx512": 8e12, "i8dot_avx512": 1e12, "bitsliced_avx512": 9e12}
    rows: list[dict[str, Any]] = [
        {"kernel": "bitserial_avx512", "isa": "avx512", "w_bits": 2, "a_bits": 2},
        {"kernel": "bitserial_avx512", "isa": "avx512", "w_bits": 4, "a_bits": 4},
        {"kernel": "bitserial_avx512", "isa": "avx512", "w_bits": None, "a_bits": 4},
        {"kernel": "i8dot_avx512", "isa": "avx512", "w_bits": 8, "a_bits": 8},
        {"kernel": "i8dot_generic", "isa": "generic", "w_bits": 8, "a_bits": 8},
        {"kernel": "bitsliced_avx512", "isa": "avx512", "w_bits": 2, "a_bits": 2},
    ]
    found = roofs(rows, {"runs": [{"roofs": rates}]})
    assert {row["name"]: row["macs_per_second"] for row in found["macs"]} == {
        "bitserial avx512 w2a2": 2e12, "bitserial avx512 w4a4": 5e11, "i8dot avx512": 1e12,
    }  # fmt: skip


def test_without_native_code_times_of_layers_are_missing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITPRESS_FORCE_ISA", raising=False)
    monkeypatch.setenv("BITPRESS_NATIVE", "0")
    found = gathered(made / "ptq.bpk")
    missing = {row["what"] for row in found["missing"]}
    assert {"verify", "milliseconds per layer", "rank correlation"} <= missing
    assert found["verify"] is None and found["latency"]["total"]["median"] > 0
    assert all(row["median"] is None for row in found["layers"])


def test_another_run_is_not_exact_and_the_page_says_so(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "ptq", tmp_path / "run"))
    tensors = read_tensors(run / TENSORS)
    tensors["3.weight"] = np.roll(tensors["3.weight"], 1, axis=0)
    write_tensors(run / TENSORS, tensors)
    outcome = bitpress("report", made / "ptq.bpk", "--against", run, "-o", tmp_path / "x.html", *QUICK)
    assert outcome.code == 1 and "is not exact" in outcome.err
    assert "Not exact:" in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_predictions_that_result_json_does_not_name_fail(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    write_json(run / RESULT, {**read_json(run / RESULT), "predictions_sha256": "0" * 64})
    outcome = bitpress("report", run, "-o", tmp_path / "x.html", *QUICK)
    assert outcome.code == 1 and "predicts otherwise" in outcome.err


def test_a_plan_changed_by_hand_takes_no_figure_of_the_search(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    write_json(run / RESULT, {**read_json(run / RESULT), "bops": 1, "top1": 99.0, "data": "nowhere.py:none"})
    write_json(run / "run.json", {**read_json(run / "run.json"), "data": "nowhere.py:none"})
    found = gathered(run)
    assert found["accuracy"] is None and found["front"] == []


def test_mistakes_are_refused(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "x.html"
    assert "is a RUN itself" in refused(2, "report", made / "run", "--against", made / "run", "-o", page)
    assert "there is no folder" in refused(2, "report", made / "run", "-o", tmp_path / "none" / "x.html")
    assert "none.py" in refused(2, "report", made / "ptq.bpk", "--data", "none.py:f", "-o", page, *QUICK)
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    (run / "events.jsonl").write_text("{", encoding="utf-8")
    assert "events.jsonl is damaged" in refused(4, "report", run, "-o", page, *QUICK)
    assert not page.exists()


@pytest.mark.parametrize(
    ("library", "needs"),
    [
        ("scipy.stats", "bitpress.reporting.layers"), ("jinja2", "bitpress.page"),
        ("matplotlib.figure", "bitpress.page.figures"),
    ],
)  # fmt: skip
def test_a_missing_library_is_named_before_any_work(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, needs: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for module in (needs, needs.rpartition(".")[0]):
        if module != "bitpress":
            monkeypatch.delitem(sys.modules, module, raising=False)
    said = refused(5, "report", made / "run", "-o", tmp_path / "x.html")
    assert library in said and "pip install 'bitpress[report]'" in said


def test_the_page_refers_to_nothing_else_and_repeats_no_id(made: Path) -> None:
    page = (made / "run.html").read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href|action|data)=["']([^"']*)""", page) + re.findall(r"url\(([^)]*)", page)
    assert links and all(link.startswith(("#", "data:,")) for link in links), links
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#") and len(link) > 1} <= set(ids)
    assert "<script src" not in page and "@import" not in page and "#0101" not in page and "#0201" not in page


def test_names_cannot_become_markup(made: Path) -> None:
    """Names of layers come from a file that may be anybody's."""
    found = copy.deepcopy(document(made / "run.json"))
    evil = "<script>alert(1)</script>$x_1$&"
    for row in (*found["layers"], *found["front"], *found["parts"], *found["missing"]):
        row |= {"name": evil, "what": evil}
    found["source"] = found["network"]["model"] = evil
    page = render(found)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "$x_1$" in page


def test_causes_are_told_in_the_order_of_lost_time(made: Path) -> None:
    found = copy.deepcopy(document(made / "run.json"))
    assert all(row["slow"] is None or len(row["slow"]) > 20 for row in found["layers"])
    for number, row in enumerate(found["layers"]):
        row |= {"bound": 1.0, "median": 2.0 + number, "slow": f"cause {number}", "efficiency": 0.5, "share": 0.1}
    found["layers"][0]["slow"] = None
    page = render(found)
    told = re.findall(r"</code>: cause (\d)</li>", page)
    assert told == [str(number) for number in range(len(found["layers"]) - 1, 0, -1)]
    for row in found["layers"]:
        row["slow"] = None
    assert "take longer than their bound" not in render(found)


@pytest.mark.slow
def test_a_browser_opens_it_sorts_it_and_finds_it_accessible(made: Path, tmp_path: Path) -> None:
    found = document(made / "run.json")
    found["layers"][1] |= dict.fromkeys(("median", "share", "relative", "efficiency", "rate"))
    (tmp_path / "gap.html").write_text(render(found), encoding="utf-8")
    with chromium() as browser:
        from axe_playwright_python.sync_playwright import Axe

        for scheme in ("light", "dark"):
            with opened(browser, made / "run.html", scheme=scheme) as (page, said):
                audit = Axe().run(page).response
                assert [(v["id"], v["nodes"][0]["html"]) for v in audit["violations"]] == []
                assert "color-contrast" in {rule["id"] for rule in audit["passes"]}
                assert said == []
        with opened(browser, made / "run.html", width=390) as (page, said):
            assert page.evaluate("document.documentElement.scrollWidth") == 390  # tables scroll, the page does not
            _sorts(page)
            _changes_its_colours(page)
            assert said == []
        with opened(browser, tmp_path / "gap.html") as (page, said):
            _keeps_gaps_last(page)
            assert said == []


def _sorts(page: Any) -> None:
    """By a click and by the keyboard alone."""
    table = page.locator("section#layers table").first
    head = table.locator("thead th").nth(6)  # MACs
    cells = "rows => rows.map(row => row.cells[6].dataset.v)"

    def column() -> list[int]:
        return [int(text) for text in table.locator("tbody tr").evaluate_all(cells)]

    before = column()
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert column() == sorted(before) != before and head.get_attribute("aria-sort") == "ascending"
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert column() == sorted(before, reverse=True) and head.get_attribute("aria-sort") == "descending"
    assert page.locator("#said").text_content().endswith("sorted by MACs, descending")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert table.locator("thead th").nth(7).get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") == "none"


def _keeps_gaps_last(page: Any) -> None:
    table = page.locator("section#layers table").first
    for direction in ("ascending", "descending"):
        head = table.locator("thead th").nth(9)  # ms
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == direction
        assert table.locator("tbody tr").last.locator("td").nth(8).get_attribute("data-v") == ""


def _changes_its_colours(page: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    before, button = page.evaluate(colour), page.locator("#theme")
    button.press("Enter")
    assert page.evaluate(colour) != before and button.get_attribute("aria-pressed") == "true"
