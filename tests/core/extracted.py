"""What every frozen net must come to: integers that compute what it computes, masked or cut out."""

from __future__ import annotations

import numpy as np

from bitpress.compiler.prune import prune
from bitpress.core.graph import Graph, run
from bitpress.core.integer import integer
from bitpress.core.plan import CompressionPlan
from bitpress.core.semantics import Semantics
from bitpress.core.supernet import SuperNet, differing_codes


def as_integers(graph: Graph, net: SuperNet, x: np.ndarray) -> tuple[CompressionPlan, Graph]:
    """(plan, integer graph) of a frozen net; at most 2 % of its codes differ, and removal changes no output."""
    plan, tensors = net.extract()
    graph = graph.with_nodes(graph.nodes, {k: tensors[k] for k in graph.consts})
    whole = integer(graph, plan, tensors)
    assert max(differing_codes(graph, plan, tensors, Semantics(whole).values(x), x).values()) < 0.02
    cut = prune(whole)
    assert np.array_equal(
        run(cut, {cut.inputs[0].name: x})[cut.outputs[0]], run(whole, {whole.inputs[0].name: x})[whole.outputs[0]]
    )
    return plan, whole
