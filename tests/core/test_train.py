"""The loop: checkpoints, resume, signals, NaN, events; and the pieces that steps are made of."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitpress.core.data import CLASSIFICATION
from bitpress.core.errors import CheckFailed, CorruptError, Interrupted, UsageError
from bitpress.core.job import Settings, locked, open_run, schedule
from bitpress.core.supernet import FloatNet, Place, placed
from bitpress.core.train import (
    ALL,
    Loop,
    Progress,
    Samples,
    Training,
    check_finite,
    cosine,
    evaluate,
    reestimate,
    smoothed,
    stepwise,
)
from bitpress.core.train_goals import GOALS

from ..benchmarks.graphs import residual

objective = GOALS[CLASSIFICATION].objective


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _samples(count: int = 40) -> Samples:
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (count, 3, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 10, count)

    def draw(
        numbers: np.ndarray, rng: np.random.Generator, rows: slice = ALL, /
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        noise = rng.normal(0, 0.1, (len(numbers), 3, 8, 8)).astype(np.float32)  # augmentation draws from the generator
        return (images[numbers] + noise)[rows], labels[numbers][rows]

    return Samples(count, draw, (images[:16], labels[:16]))


def _loop(folder: Path, **options: Any) -> Loop:
    return Loop(folder, _samples(), **({"batch": 8, "seed": 3, "work": 1.0} | options))


def _training(epochs: int = 3, **options: Any) -> Training:
    net = FloatNet(residual())
    groups = [{"params": list(net.parameters())}]
    return Training("float", net, groups, epochs=epochs, lr=0.05, samples=_samples(), **options)


class Stopping(Training):
    """Sends a signal to its own process, or dies, at one step."""

    def __init__(self, at: int, what: int | None) -> None:
        net = FloatNet(residual())
        super().__init__(
            "float", net, [{"params": list(net.parameters())}], epochs=3, lr=0.05, samples=_samples()
        )  # fmt: skip
        self.at, self.what = at, what

    def step(self, x: Tensor, y: Tensor, done: int, total: int) -> dict[str, float]:
        if done == self.at:
            if self.what is None:
                raise MemoryError
            os.kill(os.getpid(), self.what)
        return super().step(x, y, done, total)


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _unbroken(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    phase = _training()
    _loop(folder).run(phase)
    return phase.net.state_dict(), (folder / "events.jsonl").read_text().splitlines()


@pytest.mark.parametrize("every", [1, 3, 10**9])
@pytest.mark.parametrize("at", [0, 2, 5, 7, 14])
def test_a_run_that_died_at_any_step_continues_bit_for_bit(tmp_path: Path, at: int, every: int) -> None:
    want, events = _unbroken(tmp_path / "whole")
    folder = tmp_path / "broken"
    loop = _loop(folder)
    loop.every = every
    with pytest.raises(MemoryError):
        loop.run(Stopping(at, None))
    phase = _training()
    again = _loop(folder)
    again.run(phase)
    assert _same(phase.net.state_dict(), want)
    assert (folder / "events.jsonl").read_text().splitlines() == events


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_and_raises_with_exit_code_130(tmp_path: Path, number: int) -> None:
    want, events = _unbroken(tmp_path / "whole")
    folder, before = tmp_path / "broken", signal.getsignal(number)
    loop = _loop(folder)
    with pytest.raises(Interrupted, match="epoch 2 of 3, step 3 of 5") as caught, loop.signals():
        loop.run(Stopping(7, number))
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is before
    phase = _training()
    again = _loop(folder)
    assert again._pending is not None
    assert again._pending["step"] == 3
    again.run(phase)
    assert _same(phase.net.state_dict(), want)
    assert (folder / "events.jsonl").read_text().splitlines() == events


def test_a_signal_between_phases_stops_too(tmp_path: Path) -> None:
    loop = _loop(tmp_path)
    with pytest.raises(Interrupted), loop.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        loop.finish("float", {"x": torch.ones(2)})
    assert torch.equal(_loop(tmp_path).carry["float"]["x"], torch.ones(2))


def test_events_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    _unbroken(tmp_path)
    path = tmp_path / "events.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"event": "lost"}\n{"torn')
    _loop(tmp_path)
    assert path.read_text() == whole
    assert [json.loads(line)["epoch"] for line in whole.splitlines()] == [1, 2, 3]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    _unbroken(tmp_path)
    path = tmp_path / "checkpoint" / "state.pt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptError, match="damaged"):
        _loop(tmp_path)


def test_checkpoints_come_by_counted_work(tmp_path: Path) -> None:
    assert _loop(tmp_path, work=1e11).every == 3
    assert _loop(tmp_path, work=1e13).every == 1


def test_progress_tells_phase_epoch_figures_and_eta(tmp_path: Path) -> None:
    seen: list[Progress] = []
    _loop(tmp_path, progress=seen.append, agenda=[("float", 2, 1.0), ("search", 1, 4.0)]).run(_training(2))
    ends = [p for p in seen if p.fields]
    assert [(p.phase, p.epoch, p.epochs) for p in ends] == [("float", 1, 2), ("float", 2, 2)]
    assert {"loss", "val_top1", "val_loss"} <= set(ends[0].fields)
    assert all(p.eta > 0 for p in seen)
    assert len(seen) == 2 * 5 + 2


def test_the_best_state_on_validation_is_kept(tmp_path: Path) -> None:
    phase = _training(4)
    _loop(tmp_path).run(phase)
    tops = [json.loads(line)["val_top1"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert phase.score[0] >= max(tops)
    phase.net.load_state_dict(phase.best)
    assert evaluate(phase.net, *_samples().held)[0] == phase.score[0]


def test_nan_stops_and_names_the_layer_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    class Poisoned(Training):
        def step(self, x: Tensor, y: Tensor, done: int, total: int) -> dict[str, float]:
            if done == 7:
                with torch.no_grad():
                    self.net.tensor("a.weight")[0, 0, 0, 0] = float("nan")
            return super().step(x, y, done, total)

    net = FloatNet(residual())
    groups = [{"params": list(net.parameters())}]
    phase = Poisoned("float", net, groups, epochs=3, lr=0.05, samples=_samples())
    with pytest.raises(CheckFailed, match="layer a is the first") as caught:
        _loop(tmp_path).run(phase)
    assert caught.value.exit_code == 1
    good = _loop(tmp_path)._pending
    assert good is not None
    assert good["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in good["state"]["net"].values())


def test_weights_that_became_infinite_are_never_saved(tmp_path: Path) -> None:
    phase = _training(1)
    original = phase.epoch_end

    def spoil() -> dict[str, float]:
        out = original()
        with torch.no_grad():
            phase.net.tensor("fc.bias")[0] = float("inf")
        return out

    phase.epoch_end = spoil  # type: ignore[method-assign]
    with pytest.raises(CheckFailed, match=r"fc\.bias became NaN or infinite"):
        _loop(tmp_path).run(phase)
    assert not (tmp_path / "checkpoint" / "state.pt").exists()


def test_check_finite_is_silent_on_numbers() -> None:
    check_finite(torch.tensor(1.0), FloatNet(residual()), torch.zeros(1, 3, 8, 8), "float")


def test_the_objective_mixes_cross_entropy_and_distillation() -> None:
    outputs, teacher, labels = torch.randn(6, 10), torch.randn(6, 10), torch.arange(6)
    ce = F.cross_entropy(outputs, labels)
    assert torch.equal(objective(outputs, labels, None, 0.5), ce)
    assert torch.equal(objective(outputs, labels, teacher, 0.0), ce)
    assert float(objective(teacher, labels, teacher, 1.0)) == pytest.approx(0, abs=1e-5)
    log_p, q = F.log_softmax(outputs / 3, 1), F.softmax(teacher / 3, 1)
    soft = 9 * (q * (q.log() - log_p)).sum(1).mean()
    assert torch.allclose(objective(outputs, labels, teacher, 0.25), 0.75 * ce + 0.25 * soft)


def test_the_cosine_falls_from_one_to_zero() -> None:
    assert cosine(0, 100) == 1
    assert math.isclose(cosine(50, 100), 0.5)
    assert cosine(100, 100) == pytest.approx(0)


def test_the_steps_divide_by_ten_at_a_half_and_at_three_quarters() -> None:
    assert [stepwise(done, 8) for done in range(8)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(("shape", "last"), [("cosine", cosine(4, 5)), ("step", 0.01)])
def test_the_loop_says_how_rates_fall(tmp_path: Path, shape: str, last: float) -> None:
    phase = _training(1)
    loop = _loop(tmp_path, shape=shape)
    assert loop.steps == 5
    loop.run(phase)
    assert [g["lr"] for g in phase.optimizer.param_groups] == pytest.approx([rate * last for rate in phase.rates])


def test_smoothed_labels_are_what_torch_means_by_them() -> None:
    outputs, labels = torch.randn(6, 10), np.array([0, 3, 9, 1, 1, 5])
    wanted = F.cross_entropy(outputs, torch.from_numpy(labels), label_smoothing=0.2)
    got = objective(outputs, torch.from_numpy(smoothed(labels, 10, 0.2)), None, 0.0)
    assert float(got) == pytest.approx(float(wanted), rel=1e-6)


def test_nets_live_where_they_are_placed_and_bf16_is_near_fp32() -> None:
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = FloatNet(residual()).eval()
    with placed(Place("cpu", "bf16")):
        quick = FloatNet(residual()).eval()
    assert FloatNet(residual()).place == Place()
    with torch.no_grad():
        got, wanted = quick(x), exact(x)
    assert got.dtype == torch.float32
    assert not torch.equal(got, wanted)
    assert float((got - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_statistics_are_estimated_as_the_mean_over_batches() -> None:
    net = FloatNet(residual()).eval()
    batches = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    with torch.no_grad():
        want = torch.stack([dict(net.walk(x))["stem"].mean((0, 2, 3)) for x in batches]).mean(0)
    reestimate(net, batches)
    assert torch.allclose(net.tensor("stem.bn.mean"), want, atol=1e-6)
    assert not net.training


# the terms of a run


def test_a_run_of_before_the_training_options_is_one_of_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    open_run(tmp_path / "run", _settings())
    path = tmp_path / "run" / "run.json"
    recorded = json.loads(path.read_text())
    for key in ("schedule", "label_smoothing", "device", "precision"):
        del recorded[key]
    path.write_text(json.dumps(recorded))
    assert open_run(tmp_path / "run", _settings()) is True
    with pytest.raises(UsageError, match="--precision: fp32 there, bf16 now"):
        open_run(tmp_path / "run", _settings(precision="bf16"))


def _settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "model": "m", "data": "digits", "method": "sbs", "mode": "joint", "variant": "guided",
        "bits": "", "prune_share": None,
        "budget": ("bops=2%",), "files": {"weights": "ab"},
        "classes": 10, "in_shape": (1, 8, 8), "mean": (0.0,), "std": (1.0,), "residual": "int8",
        "schedule": schedule("digits", {}), "seed": 0, "threads": 1, "group_size": 4, "max_pruning_ratio": 0.5,
        "distill": 0.5, "train_images": None,
    }  # fmt: skip
    return Settings(**(values | changes))


def test_a_folder_becomes_a_run_and_refuses_other_settings_by_flag(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        assert open_run(tmp_path / "run", _settings()) is False
        assert open_run(tmp_path / "run", _settings()) is True
        with pytest.raises(UsageError, match=r"--seed: 0 there, 1 now") as caught:
            open_run(tmp_path / "run", _settings(seed=1, budget=("bops=3%",)))
        assert "--budget: bops=2% there, bops=3% now" in str(caught.value)
        with pytest.raises(UsageError, match=r"--weights, .*: weights ab there, none now"):
            open_run(tmp_path / "run", _settings(files={}))
        with pytest.raises(UsageError, match="--epochs-search"):
            open_run(tmp_path / "run", _settings(schedule=schedule("digits", {"epochs_search": 1})))
        with pytest.raises(UsageError, match="--weights"):
            open_run(tmp_path / "run", _settings(files={"weights": "cd"}))


def test_a_folder_with_something_else_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with locked(tmp_path), pytest.raises(UsageError, match="no RUN"):
        open_run(tmp_path, _settings())
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="is a file"), locked(tmp_path / "notes.txt"):
        pass


def test_a_run_in_use_names_the_process_and_a_stale_lock_is_nothing(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match=f"in use by process {os.getpid()}"), locked(tmp_path):
        pass
    (tmp_path / ".lock").write_text("999999\n")  # of a process that was killed
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_schedules_take_changes_and_refuse_nonsense() -> None:
    assert schedule("cifar10:somewhere", {}).batch == 128
    assert schedule("digits", {"batch": 7, "lr_search": None}).batch == 7
    with pytest.raises(UsageError, match="--lr-search"):
        schedule("digits", {"lr_search": 0.0})
    with pytest.raises(UsageError, match="--epochs-float"):
        schedule("digits", {"epochs_float": -1})
    with pytest.raises(UsageError, match="--lr-float"):
        schedule("digits", {"lr_float": float("nan")})
