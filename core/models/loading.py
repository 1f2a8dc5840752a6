"""A network from its spec: of the zoo, of timm or torchvision, or of a user's file; with weights from a file.

Knows nothing of graphs or data sets. Everything a user can get wrong here is answered with the numbers.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BitpressError, CorruptError, EnvironmentMissing, UsageError, close
from ..factory import call_factory, is_factory
from ..network import Triple, labels, numbers, per_channel
from .zoo import IMAGENET, ZOO, Shape

COUNTER = "num_batches_tracked"  # of batch norms: counts training steps, means nothing to the function


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network in evaluation mode with all that is known of its input and its answers.

    `mean`, `std`: a value per input channel. `labels`: class names, empty where unknown. `weights`: the file.
    """

    module: nn.Module
    spec: str
    in_shape: Shape
    classes: int
    mean: Triple
    std: Triple
    labels: tuple[str, ...]
    weights: Path | None


@dataclass(frozen=True, slots=True)
class _Made:
    module: nn.Module
    in_shape: Shape | None
    mean: Triple
    std: Triple


def load(
    spec: str,
    *,
    classes: int | None = None,
    in_shape: Shape | None = None,
    weights: str | Path | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    seed: int | None = None,
) -> Loaded:
    """The network that `spec` names, in evaluation mode, on the CPU; without `weights` as its factory starts it.

    `seed`: of torch's chance, which factories draw from; None leaves it as it is.

    UsageError: unknown name, bad class count, shape or weights file; CorruptError: damaged file, NaN or infinity;
    EnvironmentMissing: timm or torchvision is not there.
    """
    if classes is not None and classes < 2:
        raise UsageError(f"--classes {classes}: a classifier has at least 2 classes")
    if in_shape is not None and (len(in_shape) != 3 or min(in_shape) < 1):
        raise UsageError(f"--in-shape {','.join(map(str, in_shape))}: expected C,H,W, each at least 1")
    if seed is not None:
        torch.manual_seed(seed)
    made = _make(spec, classes, in_shape)
    shape = in_shape or made.in_shape
    if shape is None:
        raise UsageError(f"{spec}: the shape of the input is not known: give --in-shape C,H,W")
    found: Mapping[str, str] = {}
    path = None if weights is None else Path(weights)
    if path is not None:
        state, found = read_weights(path)
        if spec in ZOO:
            state = ZOO[spec].adapt(made.module, state)
        _fill(made.module, state, f"{path} does not fit {spec}")
    _require_finite(made.module.state_dict(), str(path) if path else spec)
    made.module.eval()
    outputs = _outputs(made.module, shape, spec)
    if classes is not None and outputs != classes:
        raise UsageError(f"{spec} gives {outputs} values, --classes says {classes}")
    return Loaded(
        made.module, spec, shape, outputs,
        mean=per_channel(mean or numbers(found, "mean", str(path)) or _default(made.mean, shape), shape[0], "mean"),
        std=per_channel(std or numbers(found, "std", str(path)) or _default(made.std, shape), shape[0], "std"),
        labels=labels(found, str(path)), weights=path,
    )  # fmt: skip


def _make(spec: str, classes: int | None, in_shape: Shape | None) -> _Made:
    if spec in ZOO:
        entry = ZOO[spec]
        shape = in_shape or entry.in_shape
        module = _built(spec, lambda: entry.factory(classes or entry.classes, shape))
        return _Made(module, shape, entry.mean, entry.std)
    if is_factory(spec):
        module = call_factory(spec, classes=classes)
        if not isinstance(module, nn.Module):
            raise UsageError(f"{spec} returns a {type(module).__name__}, not a torch.nn.Module")
        own = getattr(module, "in_shape", None)
        shape_of = tuple(int(d) for d in own) if isinstance(own, tuple | list) and len(own) == 3 else None
        return _Made(module, shape_of, (0.0,), (1.0,))  # type: ignore[arg-type]
    library, _, name = spec.partition(":")
    if library in LIBRARIES and name:
        return LIBRARIES[library](spec, name, classes, in_shape)
    raise UsageError(
        f"unknown model {spec!r}{close(spec, ZOO)}: known are {', '.join(ZOO)}, timm:NAME, torchvision:NAME and "
        "file.py:factory"
    )


def _timm(spec: str, name: str, classes: int | None, in_shape: Shape | None) -> _Made:
    timm = _library("timm", spec)
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if in_shape is not None:
        options["in_chans"] = in_shape[0]
    module = _built(spec, lambda: timm.create_model(name, pretrained=False, **options))
    config = getattr(module, "default_cfg", None) or {}
    shape = tuple(config.get("input_size") or (3, 224, 224))
    return _Made(module, shape, tuple(config.get("mean") or IMAGENET[0]), tuple(config.get("std") or IMAGENET[1]))


def _torchvision(spec: str, name: str, classes: int | None, _in_shape: Shape | None) -> _Made:
    models = _library("torchvision.models", spec)
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    module = _built(spec, lambda: models.get_model(name, weights=None, **options))
    return _Made(module, (3, 224, 224), *IMAGENET)


LIBRARIES: Mapping[str, Callable[[str, str, int | None, Shape | None], _Made]] = {
    "timm": _timm, "torchvision": _torchvision,
}  # fmt: skip


def _library(name: str, spec: str) -> Any:
    missing = f"{spec} needs {name.partition('.')[0]}, which cannot be imported"
    try:
        return _imported(name)
    except (ImportError, RuntimeError) as error:
        raise EnvironmentMissing(f"{missing} ({_first_line(error)}): pip install 'bitpress[vision]'") from error


def _imported(name: str) -> Any:
    """The library; beside a torch that cannot load torchvision's compiled operators, without these.

    torchvision registers fake forms of two operators that its compiled part declares, and fails where that part does
    not load; declared by us they are never run, since no classifier needs them.
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for part in [part for part in sys.modules if part.partition(".")[0] in ("torchvision", name.partition(".")[0])]:
        del sys.modules[part]
    _declare_operators()
    return importlib.import_module(name)


@cache
def _declare_operators() -> torch.library.Library:
    """Kept, since what a library declares lives as long as it."""
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        signature = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(signature)  # type: ignore[no-untyped-call]
    return library


def _built(spec: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:  # whatever a library or an impossible shape raises is the user's to read
        raise UsageError(f"{spec} cannot be built: {type(error).__name__}: {error}") from error


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """State dict and metadata (empty where the format has none) of a .safetensors or torch file.

    UsageError if there is no such file, CorruptError if it is damaged or holds more than tensors.
    """
    if not path.is_file():
        raise UsageError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except BitpressError:
        raise
    except ImportError as error:
        raise EnvironmentMissing(f"{path} needs safetensors: pip install 'bitpress[search]'") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, OSError, AttributeError) as error:
        raise CorruptError(
            f"{path} is no weights file of tensors alone ({type(error).__name__} from torch.load, weights_only=True): "
            "save module.state_dict(), best as .safetensors"
        ) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise CorruptError(f"{path} is damaged: {error}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CorruptError(f"{path} holds no state dict (names -> tensors)")
    return {str(name).removeprefix("module."): value for name, value in state.items()}, {}


def _fill(module: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Copies `state` into `module`; UsageError with the names and numbers that do not fit."""
    own = module.state_dict()
    needed = {name for name in own if not name.endswith(COUNTER)}
    given = {name for name in state if not name.endswith(COUNTER)}
    complaints = []
    if missing := sorted(needed - given):
        complaints.append(f"{len(missing)} of {len(needed)} tensors are missing ({_some(missing)})")
    if unexpected := sorted(given - needed):
        complaints.append(f"{len(unexpected)} are unexpected ({_some(unexpected)})")
    wrong = [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in sorted(needed & given)
        if state[name].shape != own[name].shape
    ]
    if wrong:
        complaints.append("shapes differ: " + _some(wrong))
    if not missing and not unexpected and wrong and _is_class_count(module, own, state):
        complaints.append("the number of classes differs: see --classes")
    if complaints:
        raise UsageError(f"{what}: " + "; ".join(complaints))
    module.load_state_dict({name: state[name] for name in given}, strict=False)


def _is_class_count(module: nn.Module, own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> bool:
    """Whether the shapes differ in the rows of the last linear layer only."""
    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    differing = {name for name in own if name in state and own[name].shape != state[name].shape}
    return (
        bool(linears)
        and differing <= {f"{linears[-1]}.weight", f"{linears[-1]}.bias"}
        and all(own[name].shape[1:] == state[name].shape[1:] for name in differing)
    )


def _require_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise CorruptError(f"{source}: {name} holds NaN or infinity in {bad} of {tensor.numel()} elements")


def _outputs(module: nn.Module, shape: Shape, spec: str) -> int:
    """Answers per image (of a detector: per place); UsageError where the network does not take that shape."""
    try:
        with torch.no_grad():
            out = module(torch.zeros(1, *shape))
    except Exception as error:  # of whatever layer does not fit
        raise UsageError(
            f"{spec} does not take inputs of shape {','.join(map(str, shape))} (C,H,W): {_first_line(error)}"
        ) from error
    if not isinstance(out, torch.Tensor) or out.ndim < 2:
        raise UsageError(f"{spec} returns {type(out).__name__}, not one tensor [N, outputs]")
    return int(out.shape[1])


def _default(values: Triple, shape: Shape) -> Triple:
    """The network's usual numbers, or their average where the image has another number of channels."""
    return values if len(values) in (1, shape[0]) else (sum(values) / len(values),)


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f", ... {len(names) - most} more" if len(names) > most else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
