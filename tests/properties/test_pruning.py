"""What a plan removes is removed exactly: the small network computes what the whole one does with a mask."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bitpress.compiler.prune import kept_of, prune
from bitpress.core.cost import search_space
from bitpress.core.graph import Graph, Node, run
from bitpress.core.groups import channel_group
from bitpress.core.integer import integer
from bitpress.core.ops import OPS
from bitpress.core.plan import validate
from tests.compiler.nets import assert_same, images, random_plan, tensors_of

from .test_stages import graphs


@settings(max_examples=40, derandomize=True)
@given(graphs(), st.integers(0, 2**32 - 1), st.sampled_from(["int8", "float32"]))
def test_removal_equals_masking(graph: Graph, seed: int, residual: str) -> None:
    rng = np.random.default_rng(seed)
    plan = random_plan(graph, rng, residual)
    validate(plan, graph)
    whole, x = integer(graph, plan, tensors_of(graph, plan, seed % 1000)), images(graph, 2, seed % 1000)
    assume(any(_gone(node).size for node in whole.nodes))
    small = prune(whole)
    assert sum(a.size for a in small.consts.values()) < sum(a.size for a in whole.consts.values())
    masked = _masked(_strewn(whole, rng), x)
    places = {n.name: list(kept_of(n)) for n in (*whole.inputs, *whole.nodes)}
    for name, value in run(small, {whole.inputs[0].name: x}, keep=True).items():
        assert_same(masked[name][:, places[name]], value, name)


@settings(max_examples=40, derandomize=True)
@given(graphs())
def test_an_inverted_residual_block_has_one_mask_on_its_expanded_width(graph: Graph) -> None:
    blocks = [n.name.removesuffix(".deep") for n in graph.nodes if n.name.endswith(".deep")]
    assume(blocks)
    of, gates = channel_group(graph), search_space(graph, group_size=1).gates
    for block in blocks:
        assert of[f"{block}.wide"] == of[f"{block}.deep"] == of[f"{block}.deep.clip"]
        assert len({of[f"{block}.wide"], of[f"{block}.thin"]}) == 2
        assert gates[of[f"{block}.deep"]].scored == (f"{block}.deep",)


def _gone(node: Node) -> np.ndarray:
    """Channels that the plan removes from a value."""
    return np.setdiff1d(np.arange(node.shape[0]), kept_of(node))


def _strewn(graph: Graph, rng: np.random.Generator) -> Graph:
    """The integer graph with arbitrary constants wherever a removed channel is made or read."""
    values: Mapping[str, Node] = {n.name: n for n in (*graph.inputs, *graph.nodes)}
    consts = {name: array.copy() for name, array in graph.consts.items()}
    for node in graph.nodes:
        for role, name in node.consts.items():
            const, rows = consts[name], _gone(node)
            const[rows] = rng.integers(-3, 4, const[rows].shape)
            if role == "weight" and node.attrs.get("groups", 1) == 1:
                columns = _gone(values[node.inputs[0]])
                const[:, columns] = rng.integers(-3, 4, const[:, columns].shape)
    return graph.with_nodes(graph.nodes, consts)


def _masked(graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every value, removed channels of each set to 0 as soon as they are made."""
    values = {graph.inputs[0].name: x}
    for node in graph.nodes:
        consts = {role: graph.consts[name] for role, name in node.consts.items()}
        made = OPS[node.op].meaning(node, consts, *(values[i] for i in node.inputs)).copy()
        made[:, _gone(node)] = 0
        values[node.name] = made
    return values
