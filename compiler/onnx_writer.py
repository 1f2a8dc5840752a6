"""The pieces of an ONNX model while it is written: nodes, constants, metadata. Knows no op and no graph of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..core.errors import EnvironmentMissing

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

OPSET = 17
IR_VERSION = 8  # the oldest that opset 17 allows: every onnxruntime since 1.12 loads it

Value = tuple[str, tuple[int, ...]]  # name and shape without the batch


def require_onnx() -> None:
    """EnvironmentMissing, naming the extra, where onnx cannot be imported."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissing(
            f"writing ONNX needs the extra [onnx] ({error}): pip install 'bitpress[onnx]'"
        ) from error


class Writer:
    """The nodes and constants written so far. `reserved`: names that nothing written by the way may take."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        require_onnx()
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._taken = set(reserved)

    def fresh(self, name: str) -> str:
        """`name`, with underscores behind it where it is taken already."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        """Adds an initializer; its name."""
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def node(
        self, kind: str, name: str, inputs: list[str], *, facts: Mapping[str, object] | None = None, **attrs: Any
    ) -> str:
        """Adds the ONNX node `name`, which makes the value of that name; `facts` become its metadata."""
        from onnx import helper

        node = helper.make_node(kind, inputs, [name], name=name, **attrs)
        if facts:
            helper.set_model_props(node, {key: str(value) for key, value in facts.items()})
        self.nodes.append(node)
        return name

    def model(
        self,
        inputs: Iterable[Value],
        outputs: Iterable[Value],
        *,
        opset: int = OPSET,
        ir_version: int = IR_VERSION,
        facts: Mapping[str, str] | None = None,
    ) -> ModelProto:
        """The checked model, batch dimension free, values float32; `facts` become its metadata."""
        import onnx
        from onnx import TensorProto, helper

        def info(value: Value) -> Any:
            return helper.make_tensor_value_info(value[0], TensorProto.FLOAT, ["N", *value[1]])

        body = helper.make_graph(
            self.nodes, "bitpress", [info(v) for v in inputs], [info(v) for v in outputs], initializer=self.initializers
        )
        model = helper.make_model(
            body, opset_imports=[helper.make_opsetid("", opset)], producer_name="bitpress",
            producer_version=__version__, ir_version=ir_version,
        )  # fmt: skip
        helper.set_model_props(model, dict(facts or {}))
        onnx.checker.check_model(model, full_check=True)
        return model
