"""Program -> dense float Graph: lowering undone, for peers where the original network is not at hand.

A value's float is its level times a scale. Weights absorb the scales at convolutions; along residuals, pools and
gathers the scales follow one from another, so that no operation is added which the original network had not. Filters
that pruning removed are present again, as zeros: the peer does their work, and they have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..compiler.execute import levels
from ..compiler.program import Program, Step
from ..compiler.scales import SCALED_ALIKE, scales, uniform
from ..core.errors import UnsupportedError
from ..core.graph import Graph, Node
from ..core.ops import OPS

CONVOLUTIONS = ("conv2d", "depthwise_conv2d")


def rebuild(program: Program, channels: Mapping[str, int]) -> Graph:
    """Float graph with the function of `program`, but for rounding and upper clamps after sums.

    `channels`: layer -> filters of the original network (a layer that is not named was not pruned). Where a clamp
    starts at 0 it becomes `clip`, after a sum `relu`: onnxruntime fuses a clip into a convolution but not behind a sum.
    Clamps that start below 0 belong to the quantiser and vanish. UnsupportedError where there are tables, of which no
    activation can be told.
    """
    tables = [step.name for step in program.steps if step.op in ("lookup", "product")]
    if tables:
        raise UnsupportedError(
            f"{tables[0]} is a table or a product of values, from which no float network can be rebuilt for peers: "
            "give --against RUN or --model MODEL"
        )
    return _Rebuild(program, _totals(program, channels), scales(program)).graph()


def _totals(program: Program, channels: Mapping[str, int]) -> list[int]:
    """Dense channel count of every buffer: buffers tied channel by channel have the largest count that any asks for."""
    parent = list(range(len(program.buffers)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    counts = {i: b.shape[0] for i, b in enumerate(program.buffers)}
    for step in program.steps:
        tied = list(step.inputs[1:])
        same = step.op == "gather" and step.out_channels is None and _identity(step.channels, program, step)
        if same or step.op not in ("gather", "conv2d"):
            tied.append(step.inputs[0])
        for other in tied:
            parent[root(other)] = root(step.output)
        if step.op in CONVOLUTIONS:
            counts[step.output] = max(counts[step.output], channels.get(step.layer, 0))
    most: dict[int, int] = {}
    for i, count in counts.items():
        most[root(i)] = max(most.get(root(i), 0), count)
    return [most[root(i)] for i in range(len(program.buffers))]


def _identity(channels: np.ndarray | None, program: Program, step: Step) -> bool:
    return channels is not None and np.array_equal(channels, np.arange(program.buffers[step.inputs[0]].shape[0]))


@dataclass
class _Run:
    """Channels begin..end of a gather's input, and how many zero channels lie before and after them."""

    step: Step
    begin: int
    end: int
    before: int = 0
    after: int = 0


@dataclass
class _Rebuild:
    """The graph under construction: dense channel i < C of a buffer is the program's channel i, the rest are zero."""

    program: Program
    totals: list[int]
    scales: list[float]
    nodes: list[Node] = field(default_factory=list)
    consts: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[int, str] = field(default_factory=dict)  # buffer -> value name
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def graph(self) -> Graph:
        """Walks the steps, all writers of a buffer at once."""
        program = self.program
        image = Node("input", program.buffers[program.input].name, (), program.buffers[program.input].shape)
        self.values[program.input], self.shapes[image.name] = image.name, image.shape
        for steps in program.groups():
            self.values[steps[0].output] = self._group(steps)
        output = self.values[program.output]
        if len(self.shapes[output]) > 1 and self.shapes[output][1:] == (1, 1):
            output = self._add("flatten", "output", output)
        return Graph((image,), tuple(self.nodes), (output,), self.consts)

    def _add(
        self, op: str, name: str, *inputs: str, consts: Mapping[str, np.ndarray] | None = None, **attrs: object
    ) -> str:
        unique = name
        while unique in self.shapes:
            unique += "_"
        arrays = {role: np.ascontiguousarray(array, np.float32) for role, array in (consts or {}).items()}
        self.shapes[unique] = OPS[op].shape(attrs, arrays, [self.shapes[i] for i in inputs])
        self.consts |= {f"{unique}.{role}": array for role, array in arrays.items()}
        roles = {role: f"{unique}.{role}" for role in arrays}
        self.nodes.append(Node(op, unique, inputs, self.shapes[unique], attrs=attrs, consts=roles))
        return unique

    def _group(self, steps: list[Step]) -> str:
        first = steps[0]
        if first.op == "gather":
            return self._gather(steps)
        if first.op == "max_pool2d":
            return self._pool("max_pool2d", first)
        value = self._convolution(steps) if first.op in CONVOLUTIONS else self._scaled(first)
        return self._ending(first, value)

    def _ending(self, step: Step, value: str) -> str:
        """Residual and activation of an epilogue."""
        e = step.epilogue
        assert e is not None
        name, lo = self.program.buffers[step.output].name, e.lo
        if len(step.inputs) > 1:
            residual = self.values[step.inputs[1]]
            want = e.m_r * self.scales[step.output]
            have = self.scales[step.inputs[1]]
            if abs(want / have - 1) > SCALED_ALIKE:
                residual = self._affine(f"{name}.residual", residual, np.full(self.totals[step.output], want / have))
            value = self._add("add", f"{name}.sum", value, residual)
            return self._add("relu", name, value) if lo >= 0 else value
        if lo < 0 or self._not_negative(step):
            return value
        if not np.isfinite(e.hi):
            return self._add("relu", name, value)
        return self._add("clip", name, value, lo=0.0, hi=float(e.hi) * self.scales[step.output])

    def _not_negative(self, step: Step) -> bool:
        """Whether the clamp at 0 changes nothing: a mere change of storage of unsigned levels."""
        source = self.program.buffers[step.inputs[0]].storage
        return step.op not in CONVOLUTIONS and source.startswith("u") and uniform(step) is not None

    def _convolution(self, steps: list[Step]) -> str:
        """All segments of a layer as one convolution or linear layer."""
        program, step = self.program, steps[0]
        depthwise, data = step.op == "depthwise_conv2d", self.values[step.inputs[0]]
        rows = self.totals[step.output]
        stored = 1 if depthwise else program.buffers[step.inputs[0]].shape[0] // step.groups
        depth = stored if step.groups > 1 else self.totals[step.inputs[0]]
        weight, bias = np.zeros((rows, depth, *step.kernel)), np.zeros(rows)
        for part in steps:
            assert part.weight is not None and part.epilogue is not None
            at = slice(part.weight.shape[0]) if part.out_channels is None else part.out_channels
            scale = part.epilogue.m.astype(np.float64) * self.scales[part.output] / self.scales[part.inputs[0]]
            weight[at, :stored] = levels(part, stored) * scale.reshape(-1, 1, 1, 1)
            bias[at] = part.epilogue.b.astype(np.float64) * self.scales[part.output]
        name, shape = step.layer or step.name, self.shapes[data]
        if len(shape) == 1 or (shape[1:] == step.kernel and program.buffers[step.output].shape[1:] == (1, 1)):
            flat = data if len(shape) == 1 else self._add("flatten", f"{name}.flat", data)
            return self._add("linear", name, flat, consts={"weight": weight.reshape(rows, -1), "bias": bias})
        return self._add(
            "conv2d", name, data, consts={"weight": weight, "bias": bias}, stride=step.stride, padding=step.padding,
            dilation=step.dilation, groups=rows if depthwise else step.groups,
        )  # fmt: skip

    def _scaled(self, step: Step) -> str:
        """Value of quantize, requantize or sum pool before residual and activation."""
        name, value = self.program.buffers[step.output].name, self.values[step.inputs[0]]
        area = step.kernel[0] * step.kernel[1]
        if step.op == "sum_pool2d":
            value = self._pool("avg_pool2d", step)
        e = step.epilogue
        assert e is not None
        scale = e.m.astype(np.float64) * area * self.scales[step.output] / self.scales[step.inputs[0]]
        if np.allclose(scale, 1, rtol=SCALED_ALIKE, atol=0) and not e.b.any():
            return value
        return self._affine(f"{name}.scaled", value, scale, e.b.astype(np.float64) * self.scales[step.output])

    def _affine(self, name: str, value: str, scale: np.ndarray, shift: np.ndarray | None = None) -> str:
        """value * scale + shift per channel, as a batch norm."""
        c = self.shapes[value][0]
        weight, bias = np.ones(c), np.zeros(c)
        weight[: len(scale)] = scale
        if shift is not None:
            bias[: len(shift)] = shift
        consts = {"weight": weight, "bias": bias, "mean": np.zeros(c), "var": np.ones(c)}
        return self._add("batch_norm", name, value, consts=consts, eps=0.0)

    def _pool(self, op: str, step: Step) -> str:
        name, data = self.program.buffers[step.output].name, self.values[step.inputs[0]]
        if op == "avg_pool2d" and step.kernel == self.shapes[data][1:] and not any(step.padding):
            return self._add("global_avg_pool", f"{name}.mean", data)
        unique = name if op == "max_pool2d" else f"{name}.mean"
        return self._add(op, unique, data, kernel=step.kernel, stride=step.stride, padding=step.padding)

    def _gather(self, steps: list[Step]) -> str:
        """Runs of neighbouring channels as slice and pad, joined by concat."""
        step = steps[-1]
        name, total = self.program.buffers[step.output].name, self.totals[step.output]
        wanted: list[tuple[Step, int] | None] = [None] * total
        for part in steps:
            assert part.channels is not None
            to = range(len(part.channels)) if part.out_channels is None else part.out_channels.tolist()
            for at, source in zip(to, part.channels.tolist(), strict=True):
                wanted[at] = None if source < 0 else (part, source)
        if len(steps) == 1 and _identity(step.channels, self.program, step):
            runs = [_Run(step, 0, self.totals[step.inputs[0]])]  # removed channels ride along
        else:
            runs = _runs(wanted)
        pieces = [self._piece(f"{name}.{i}", run) for i, run in enumerate(runs)]
        return pieces[0] if len(pieces) == 1 else self._add("concat", name, *pieces)

    def _piece(self, name: str, run: _Run) -> str:
        value, (sh, sw), (top, left, bottom, right) = self.values[run.step.inputs[0]], run.step.stride, run.step.padding
        c, h, w = self.shapes[value]
        padded, strided = any(run.step.padding), (sh, sw) != (1, 1)
        first = (1, 1) if padded else (sh, sw)  # padding comes before the stride
        if (run.begin, run.end, *first) != (0, c, 1, 1):
            cut = ((run.begin, run.end, 1), (0, h, first[0]), (0, w, first[1]))
            value = self._add("slice", f"{name}.cut", value, slices=cut)
        if padded or run.before or run.after:
            pads = ((run.before, run.after), (top, bottom), (left, right))
            value = self._add("pad", f"{name}.pad", value, pads=pads)
        if padded and strided:
            whole = (None, None, 1)
            value = self._add("slice", f"{name}.steps", value, slices=(whole, (None, None, sh), (None, None, sw)))
        return value


def _runs(wanted: list[tuple[Step, int] | None]) -> list[_Run]:
    """Maximal runs of neighbouring source channels, in order; a zero counts to the run before it, else to the next."""
    runs: list[_Run] = []
    zeros = 0
    for item in wanted:
        if item is None:
            zeros += 1
            continue
        step, source = item
        if runs and not zeros and runs[-1].step is step and runs[-1].end == source:
            runs[-1].end += 1
            continue
        if runs:
            runs[-1].after = zeros
        runs.append(_Run(step, source, source + 1, 0 if runs else zeros))
        zeros = 0
    if not runs:
        raise UnsupportedError("a gather that takes no channel at all has no dense form; give --against or --model")
    runs[-1].after = zeros
    return runs
