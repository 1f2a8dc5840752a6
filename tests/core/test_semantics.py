"""Exactness of the torch semantics where float32 would fail, and independence of threads and batches."""

import hashlib

import numpy as np
import pytest
import torch

from bitpress.core import semantics
from bitpress.core.encoding import parse
from bitpress.core.errors import UsageError
from bitpress.core.evaluate import evaluate
from bitpress.core.graph import Graph, Node, run
from bitpress.core.integer import integer
from bitpress.core.semantics import Semantics
from tests.benchmarks.graphs import everything
from tests.compiler.nets import assert_same, images, plan_of, residual, tensors_of


def one_conv(weight, act, *, kernel=3, padding=1, size=8):
    """Input levels (through a quantiser of step 1) and one convolution, whose output is its accumulator."""
    o, i = weight.shape[:2]
    top = parse(act).hi
    pad = (padding,) * 4
    out = size + 2 * padding - kernel + 1
    attrs = {"stride": (1, 1), "padding": pad, "dilation": (1, 1), "groups": 1}
    return Graph(
        (Node("input", "x", (), (i, size, size)),),
        (
            Node("quantize", "x.q", ("x",), (i, size, size), act, {"m": 1.0, "lo": 0, "hi": top}),
            Node("conv2d_int", "acc", ("x.q",), (o, out, out), "i32", attrs, {"weight": "w"}),
        ),
        ("acc",),
        {"w": weight},
    )


@pytest.mark.parametrize(("depth", "dtype"), [(28, torch.float32), (29, torch.float64), (512, torch.float64)])
def test_worst_case_codes(depth, dtype):
    """255 x 255 x 9 x 28 is just below 2^24, the largest count that float32 holds."""
    weight = np.full((4, depth, 3, 3), 255, np.int16)
    weight[1] = -255
    weight[2, ::2] = -255
    weight[3, -1, -1, -1] = 254  # an odd sum, which float32 drops above 2^24
    graph = one_conv(weight, "u8")
    x = np.full((3, depth, 8, 8), 255, np.float32)
    x[1:] = np.random.default_rng(0).integers(0, 256, (2, depth, 8, 8))
    exact = Semantics(graph)
    assert exact._consts["acc"]["weight"].dtype == dtype
    assert_same(run(graph, {"x": x})["acc"], exact.values(x)["acc"], "acc")


def test_winograd_would_fail():
    """The numbers above are no accident: a transform with fractions is not exact on them."""
    weight = np.random.default_rng(0).integers(-255, 256, (16, 24, 3, 3)).astype(np.int16)
    graph = one_conv(weight, "u8", size=32)
    x = np.random.default_rng(1).integers(0, 256, (17, 24, 32, 32)).astype(np.float32)
    assert_same(run(graph, {"x": x})["acc"], Semantics(graph, 2).values(x)["acc"], "acc")


def test_ties_go_to_the_even_level():
    graph = Graph(
        (Node("input", "x", (), (6,)),),
        (Node("quantize", "x.q", ("x",), (6,), "i4", {"m": 1.0, "lo": -7, "hi": 7}),),
        ("x.q",),
    )
    x = np.float32([[0.5, 1.5, 2.5, -0.5, -1.5, 9.5]])
    assert Semantics(graph).values(x)["x.q"].tolist() == [[0, 2, 2, 0, -2, 7]]


def test_threads_and_batches_change_nothing(monkeypatch):
    graph = everything()
    plan = plan_of(graph, weight="i8", act=8, residual="float32")
    whole = integer(graph, plan, tensors_of(graph, plan))
    x = images(graph, 7)
    want = Semantics(whole).run(x)
    assert want.shape == (7, 10)
    before = torch.get_num_threads()
    assert_same(want, Semantics(whole, 2).run(x), "two threads")
    assert torch.get_num_threads() == before
    monkeypatch.setattr(semantics, "BATCH", 3)
    assert_same(want, Semantics(whole).run(x), "batches of 3")
    monkeypatch.setattr(semantics, "BATCH_VALUES", 1)
    assert_same(want, Semantics(whole).run(x), "one by one")
    assert_same(want, run(whole, {"image": x})["fc"], "numpy")


def test_no_images_and_wrong_images():
    graph = residual()
    plan = plan_of(graph)
    exact = Semantics(integer(graph, plan, tensors_of(graph, plan)))
    assert exact.run(images(graph, 0)).shape == (0, 10)
    with pytest.raises(UsageError, match=r"float32 \[1, 3, 9, 9\]"):
        exact.run(np.zeros((1, 3, 9, 9), np.float32))
    with pytest.raises(UsageError, match="float64"):
        exact.run(np.zeros((1, 3, 8, 8)))


def test_evaluate_counts_ties_for_the_lowest_class():
    outputs = np.float32([[0, 2, 2, 1, 0, 0, 0], [9, 9, 9, 9, 9, 9, 9], [0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0]])
    labels = np.array([2, 5, 6, 0])
    told = []
    found = evaluate(
        lambda x: outputs[x[:, 0].astype(int)], np.arange(4.0)[:, None], labels, batch=3, progress=told.append
    )
    assert found.predictions.tolist() == [1, 0, 6, 0]
    assert (found.top1, found.top5, found.n) == (50.0, 75.0, 4)
    assert found.sha256 == hashlib.sha256(np.array([1, 0, 6, 0], "<i4").tobytes()).hexdigest()
    assert told == [3, 4]


def test_evaluate_refuses_what_does_not_fit():
    with pytest.raises(UsageError, match="2 images and 1 labels"):
        evaluate(lambda x: x, np.zeros((2, 3)), np.zeros(1, int))
    with pytest.raises(UsageError, match="labels up to 3, the network has 3 outputs"):
        evaluate(lambda x: x, np.zeros((2, 3)), np.array([0, 3]))
