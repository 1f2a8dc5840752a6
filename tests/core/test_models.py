"""Networks by spec: the zoo's defaults, weights from files with every misfit named, users' own files, libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="the zoo needs torch: extra [search]")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from bitpress.core.errors import CorruptError, EnvironmentMissing, UsageError  # noqa: E402
from bitpress.core.models import ZOO, load  # noqa: E402

NAMES = (
    "digits_cnn", "resnet20", "resnet56", "preresnet20", "preresnet56", "vgg7", "resnet18", "resnet50", "mobilenet_v1",
    "mobilenet_v2", "skynet", "efficientnet_lite0", "mobilenet_v3_small",
)  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> dict[str, torch.Tensor]:
    """A state dict of digits_cnn."""
    torch.manual_seed(1)
    return dict(ZOO["digits_cnn"].factory(10, (1, 8, 8)).state_dict())


def test_the_zoo_has_the_promised_names_and_classes() -> None:
    assert set(NAMES) <= set(ZOO)
    assert {ZOO[n].classes for n in ("digits_cnn", "resnet20", "resnet56", "vgg7")} == {10}
    assert {ZOO[n].classes for n in ("preresnet20", "preresnet56")} == {100}
    assert {ZOO[n].classes for n in ("resnet18", "mobilenet_v1", "efficientnet_lite0")} == {1000}
    assert load("skynet", in_shape=(3, 32, 32)).classes == 10  # values a place
    assert (ZOO["digits_cnn"].mean, ZOO["digits_cnn"].std) == ((0.0,), (1.0,))
    assert ZOO["resnet20"].mean == (0.485, 0.456, 0.406)
    assert ZOO["resnet20"].std == (0.229, 0.224, 0.225)


def test_defaults_and_overrides() -> None:
    loaded = load("preresnet20")
    assert (loaded.classes, loaded.in_shape, loaded.labels, loaded.weights) == (100, (3, 32, 32), (), None)
    assert not loaded.module.training
    loaded = load("preresnet20", classes=7, in_shape=(1, 28, 28), mean=(0.5,), std=(0.25,))
    assert (loaded.classes, loaded.in_shape, loaded.mean, loaded.std) == (7, (1, 28, 28), (0.5,), (0.25,))
    assert load("resnet20", in_shape=(1, 16, 16)).mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)


def test_the_same_seed_starts_the_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(load("digits_cnn").module.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_digits_cnn_leaves_the_budget_to_the_inner_layers() -> None:
    module = load("digits_cnn").module
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert 4 <= len(convs) - 1 <= 5
    assert sum(p.numel() for p in module.parameters()) < 200_000


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_round_trip(tmp_path: Path, digits: dict[str, torch.Tensor], suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(digits, path) if suffix == ".safetensors" else torch.save(digits, path)
    loaded = load("digits_cnn", weights=path)
    assert loaded.weights == path
    assert all(torch.equal(v, digits[k]) for k, v in loaded.module.state_dict().items())


def test_counters_of_batch_norms_may_be_missing_and_wrappers_are_taken_off(
    tmp_path: Path, digits: dict[str, torch.Tensor]
) -> None:
    bare = {f"module.{k}": v for k, v in digits.items() if not k.endswith("num_batches_tracked")}
    torch.save({"epoch": 3, "state_dict": bare}, tmp_path / "w.pt")
    assert torch.equal(load("digits_cnn", weights=tmp_path / "w.pt").module.conv1.weight, digits["conv1.weight"])


def test_metadata_overrides_the_zoo(tmp_path: Path, digits: dict[str, torch.Tensor]) -> None:
    save_file(digits, tmp_path / "w.safetensors", {"mean": "0.25", "std": "[0.5]", "labels": '["a", "b"]'})
    loaded = load("digits_cnn", weights=tmp_path / "w.safetensors")
    assert (loaded.mean, loaded.std, loaded.labels) == ((0.25,), (0.5,), ("a", "b"))
    assert load("digits_cnn", weights=tmp_path / "w.safetensors", mean=(0.1,)).mean == (0.1,)
    save_file(digits, tmp_path / "w.safetensors", {"mean": "a quarter"})
    with pytest.raises(CorruptError, match="a quarter"):
        load("digits_cnn", weights=tmp_path / "w.safetensors")


def _refused(tmp_path: Path, state: dict[str, torch.Tensor], **options: int) -> str:
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UsageError) as caught:
        load("digits_cnn", weights=tmp_path / "w.safetensors", **options)
    return str(caught.value)


def test_misfits_hold_the_numbers(tmp_path: Path, digits: dict[str, torch.Tensor]) -> None:
    less = {k: v for k, v in digits.items() if not k.startswith("conv2")}
    assert "1 of 32 tensors are missing (conv2.weight)" in _refused(tmp_path, less)
    assert "2 are unexpected (extra.a, extra.b)" in _refused(
        tmp_path, {**digits, "extra.a": torch.zeros(1), "extra.b": torch.zeros(1)}
    )
    wider = {**digits, "conv2.weight": torch.zeros(32, 16, 5, 5)}
    said = _refused(tmp_path, wider)
    assert "conv2.weight is [32, 16, 5, 5], expected [32, 16, 3, 3]" in said
    assert "--classes" not in said
    said = _refused(tmp_path, digits, classes=12)
    assert "linear.weight is [10, 64], expected [12, 64]" in said
    assert "--classes" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, digits: dict[str, torch.Tensor], value: float) -> None:
    bad = {k: v.clone() for k, v in digits.items()}
    bad["bn3.running_var"][5] = value
    save_file(bad, tmp_path / "w.safetensors")
    with pytest.raises(CorruptError, match=r"bn3\.running_var holds NaN or infinity in 1 of 32 elements"):
        load("digits_cnn", weights=tmp_path / "w.safetensors")


class Trap:
    """Pickles into a call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("must never run",)


def test_damaged_and_dangerous_files_are_refused(
    tmp_path: Path, digits: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in (("a.safetensors", b"\x10garbage"), ("b.pt", b"garbage"), ("c.safetensors", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorruptError, match=name[0]):
            load("digits_cnn", weights=tmp_path / name)
    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(CorruptError, match=r"no weights file of tensors alone.*save module\.state_dict") as error:
        load("digits_cnn", weights=tmp_path / "trap.pt")
    assert "\x1b" not in str(error.value)  # torch colours its advice, which is to trust the file
    assert "must never run" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CorruptError, match="no state dict"):
        load("digits_cnn", weights=tmp_path / "list.pt")
    save_file(digits, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptError, match="damaged"):
        load("digits_cnn", weights=tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("resnet21", {}, "unknown model 'resnet21'"),
        ("keras:resnet", {}, "unknown model"),
        ("resnet20", {"classes": 1}, "at least 2"),
        ("resnet20", {"in_shape": (3, 32)}, "expected C,H,W"),
        ("resnet20", {"in_shape": (3, 0, 32)}, "each at least 1"),
        ("digits_cnn", {"in_shape": (1, 2, 2)}, "does not take inputs of shape 1,2,2"),
        ("resnet20", {"mean": (0.5, 0.5)}, "mean has 2 values, the input has 3 channels"),
        ("resnet20", {"std": (0.5, 0.5, 0.0)}, "above 0"),
        ("resnet20", {"weights": "nowhere.safetensors"}, "no weights file nowhere"),
        ("nowhere.py:net", {}, "no file nowhere.py"),
    ],
)
def test_mistakes_are_usage_errors(spec: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(spec, **options)


OWN = """
from torch import nn
from neighbour import WIDTH

def plain():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 5))

def chosen(classes=3):
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, classes))
    net.in_shape = (2, 4, 4)
    return net

def wrong():
    return 5

def fails():
    raise KeyError("weights")

NOT_CALLABLE = 1
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's file with factories."""
    (tmp_path / "neighbour.py").write_text("WIDTH = 6\n")
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_networks_from_a_file(own: Path) -> None:
    loaded = load(f"{own}:plain", in_shape=(3, 8, 8))
    assert (loaded.classes, loaded.in_shape, loaded.mean, loaded.std) == (5, (3, 8, 8), (0.0,) * 3, (1.0,) * 3)
    assert (load(f"{own}:chosen").classes, load(f"{own}:chosen").in_shape) == (3, (2, 4, 4))
    assert load(f"{own}:chosen", classes=4).classes == 4
    assert str(own.parent) not in sys.path


@pytest.mark.parametrize(
    ("factory", "options", "words"),
    [
        ("plain", {}, "--in-shape"),
        ("plain", {"in_shape": (3, 2, 2)}, "does not take inputs of shape 3,2,2"),
        ("plain", {"in_shape": (3, 8, 8), "classes": 6}, "gives 5 values, --classes says 6"),
        ("wrong", {}, "returns a int"),
        ("fails", {}, "KeyError: 'weights'"),
        ("missing", {}, "no function 'missing'"),
        ("NOT_CALLABLE", {}, "no function"),
    ],
)
def test_a_file_that_is_wrong_is_a_usage_error(own: Path, factory: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(f"{own}:{factory}", **options)


def test_a_file_that_fails_on_import(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        load(f"{tmp_path / 'own.py'}:net")
    (tmp_path / "own.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UsageError, match="SystemExit"):
        load(f"{tmp_path / 'own.py'}:net")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_missing_libraries_name_the_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.models", None)
    with pytest.raises(EnvironmentMissing, match=r"bitpress\[vision\]"):
        load(f"{library}:resnet18")


def test_libraries_are_asked_for_networks_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, object]]] = []

    def net(classes: int, channels: int = 3) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    def create_model(name: str, **options: object) -> nn.Module:
        calls.append((name, options))
        if name == "nix":
            raise RuntimeError("Unknown model (nix)")
        module = net(options.get("num_classes", 1000), options.get("in_chans", 3))
        module.default_cfg = {"input_size": (3, 24, 24), "mean": (0.1, 0.2, 0.3), "std": (1, 1, 2)}
        return module

    timm = ModuleType("timm")
    timm.create_model = create_model
    vision = ModuleType("torchvision.models")
    vision.get_model = lambda _name, weights, num_classes=1000: net(num_classes) if weights is None else None
    parent = ModuleType("torchvision")
    parent.models = vision
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", parent)
    monkeypatch.setitem(sys.modules, "torchvision.models", vision)
    loaded = load("timm:small", classes=4)
    assert calls == [("small", {"pretrained": False, "num_classes": 4})]
    assert (loaded.classes, loaded.in_shape, loaded.mean, loaded.std) == (4, (3, 24, 24), (0.1, 0.2, 0.3), (1, 1, 2))
    assert load("torchvision:resnet18").in_shape == (3, 224, 224)
    assert load("torchvision:resnet18", classes=9).classes == 9
    with pytest.raises(UsageError, match="Unknown model"):
        load("timm:nix")


HALF_A_LIBRARY = """
import torch
try:
    torch.ops.torchvision.nms, torch.ops.torchvision.qnms
except AttributeError:
    raise RuntimeError("operator torchvision::nms does not exist") from None
"""


def test_a_library_whose_operators_do_not_load_is_used_without_them(tmp_path: Path) -> None:
    """In a process of its own: operators stay declared."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(HALF_A_LIBRARY)
    (tmp_path / "torchvision" / "models.py").write_text(
        "from torch import nn\n"
        "get_model = lambda name, weights: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7))\n"
    )
    code = "from bitpress.core.models import load; print(load('torchvision:small').classes)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("7\n", 0), done.stderr


def test_a_library_that_fails_otherwise_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('built for another torch\\nand more')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(
        EnvironmentMissing, match=r"imported \(built for another torch\): pip install 'bitpress\[vision"
    ):
        load("timm:small")


@pytest.mark.parametrize(
    ("name", "library", "parameters"),
    [("efficientnet_lite0", "timm", 4_652_008), ("mobilenet_v3_small", "torchvision", 2_542_856)],
)
def test_networks_of_the_zoo_are_those_of_the_libraries(name: str, library: str, parameters: int) -> None:
    """With as many parameters as published (4.65 and 2.54 millions); the rest where the library is there."""
    module = ZOO[name].factory(1000, (3, 224, 224)).eval()
    assert sum(p.numel() for p in module.parameters()) == parameters
    try:
        other = load(f"{library}:{name}", in_shape=(3, 32, 32)).module
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    assert list(other.state_dict()) == list(module.state_dict())
    module.load_state_dict(other.state_dict())
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(module(x), other(x))


def test_the_folded_mobilenet_is_the_other_one_without_batch_norms(tmp_path: Path) -> None:
    """But for the padding of strides: the same layers, the same shapes, in the order of execution."""
    whole, folded = (load(name, classes=5, in_shape=(3, 64, 64)).module for name in ("mobilenet_v2", "mobilenet_v2_tf"))
    shapes = [
        [tuple(part.weight.shape) for part in net.modules() if isinstance(part, nn.Conv2d)] for net in (whole, folded)
    ]
    assert shapes[1] == [*shapes[0], (5, 1280, 1, 1)]
    state = dict(folded.state_dict())
    file = tmp_path / "public.safetensors"
    for name in ("52.conv_2d.weight", "52.conv_2d.bias"):  # the public files have an output for the background first
        state[name] = torch.cat([torch.full_like(state[name][:1], 9.0), state[name]])
    save_file(state, file)
    loaded = load("mobilenet_v2_tf", classes=5, in_shape=(3, 64, 64), weights=file).module.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in folded.state_dict().items())
    assert load("mobilenet_v2_tf", classes=6, in_shape=(3, 64, 64), weights=file).classes == 6
    with pytest.raises(UsageError, match=r"52\.conv_2d\.bias is \[6\], expected \[7\]"):
        load("mobilenet_v2_tf", classes=7, in_shape=(3, 64, 64), weights=file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet20", "cifar10_resnet20"), ("resnet56", "cifar10_resnet56"),
        ("mobilenet_v1_075", "imagenet_mobilenetv1_0.75_224"), ("skynet", "skynet_dac"),
        ("mobilenet_v2_tf", "imagenet_mobilenetv2_1.0_224_dequant"),
    ],
)  # fmt: skip
def test_public_weights_fit(real_data: Path, name: str, file: str) -> None:
    loaded = load(name, weights=real_data / "weights" / f"{file}.safetensors")
    assert loaded.mean == ZOO[name].mean
    assert loaded.std == ZOO[name].std
