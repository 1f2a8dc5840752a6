"""What a spec names: `file.py:factory`, a function out of a user's Python file, or an ONNX file.

Knows nothing of what the function makes.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UsageError


def is_factory(spec: str) -> bool:
    """Whether `spec` has the form file.py:factory.

    >>> is_factory("nets/mine.py:small"), is_factory("cifar10:data.py")
    (True, False)
    """
    path, colon, name = spec.rpartition(":")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def is_onnx(spec: str) -> bool:
    """Whether `spec` names an ONNX file.

    >>> is_onnx("nets/mine.onnx"), is_onnx("resnet20")
    (True, False)
    """
    return spec.endswith(".onnx")


def load_factory(spec: str) -> Callable[..., Any]:
    """The function that `spec` names; UsageError where the file, the name or the file's own imports fail.

    The file may import its neighbours, as a script may.
    """
    text, _, name = spec.rpartition(":")
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"{spec}: there is no file {text}")
    module_spec = importlib.util.spec_from_file_location(f"bitpress_user_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"{spec}: {text} cannot be loaded as Python")
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent))
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{spec}: {text} fails on import: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    factory = getattr(module, name, None)
    if not callable(factory):
        raise UsageError(f"{spec}: {text} has no function {name!r}")
    return factory


def call_factory(spec: str, **optional: object) -> Any:
    """What the function returns, given those of `optional` that it takes and that are not None.

    UsageError holds the function's own failure.
    """
    factory = load_factory(spec)
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # of a callable written in C
        parameters = {}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    given = {k: v for k, v in optional.items() if v is not None and (takes_all or k in parameters)}
    try:
        return factory(**given)
    except Exception as error:
        raise UsageError(f"{spec} fails: {type(error).__name__}: {error}") from error
