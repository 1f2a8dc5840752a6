"""Epilogues and joined gathers: the same values from fewer nodes, and no new constant."""

from dataclasses import replace

import pytest

from bitpress.compiler.fuse import fuse
from bitpress.compiler.prune import prune
from bitpress.core.errors import CorruptError
from bitpress.core.graph import run, verify
from bitpress.core.integer import integer
from tests.compiler.nets import NETS, assert_same, chain, images, option_a, plan_of, tensors_of


def derive(graph, **choice):
    plan = plan_of(graph, **choice)
    return prune(integer(graph, plan, tensors_of(graph, plan)))


@pytest.mark.parametrize("net", NETS)
def test_no_accumulator_and_no_new_constant(net):
    graph = NETS[net]()
    small = derive(graph)
    fused = fuse(small)
    verify(fused, "fused")
    assert not [n.name for n in fused.nodes if n.dtype == "i32"]
    assert fused.consts is small.consts
    x = {"image": images(graph, 2)}
    want = run(small, x, keep=True)
    for name, value in run(fused, x, keep=True).items():
        assert_same(want[name], value, name)


def test_adjacent_gathers_are_one():
    fused = fuse(derive(option_a()))
    (gather,) = (n for n in fused.nodes if n.op == "gather")
    assert (gather.name, gather.inputs, gather.attrs["stride"]) == ("short.pad", ("one.relu",), (2, 2))
    assert gather.attrs["channels"] == (-1,) * 4 + tuple(range(8)) + (-1,) * 4


def test_gathers_that_others_read_stay():
    small = derive(option_a())
    fused = fuse(replace(small, outputs=("short",)))
    assert [n.name for n in fused.nodes if n.op == "gather"] == ["short", "short.pad"]


def test_an_accumulator_that_two_read_is_refused():
    small = derive(chain())
    extra = replace(small.value("b.relu"), name="again")
    with pytest.raises(CorruptError, match=r"'b\.acc' must be read by one requantisation"):
        fuse(small.with_nodes((*small.nodes, extra), small.consts))
