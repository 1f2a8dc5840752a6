"""Options that say what a MODEL is: shared by the verbs that load one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from .command import Floats, Numbers

F = TypeVar("F", bound=Callable[..., Any])


class Shape(Numbers):
    """Three numbers C,H,W."""

    name = "C,H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """`value` as (C, H, W)."""
        out = super().convert(value, param, ctx)
        if len(out) != 3:
            self.fail(f"{value!r}: three numbers C,H,W expected.", param, ctx)
        return out


def model_options(function: F) -> F:
    """--weights, --classes, --in-shape."""
    for option in (
        click.option("--in-shape", type=Shape(), help="Input shape, where the model does not say it."),
        click.option("--classes", type=int, help="Number of classes, where the model does not say it."),
        click.option("--weights", metavar="F", help=".safetensors, or a state dict of torch."),
    ):
        function = option(function)
    return function


def normal_options(function: F) -> F:
    """--mean, --std."""
    for option in (
        click.option("--std", type=Floats(), help="Per channel; over the weights file's and the model's own."),
        click.option("--mean", type=Floats(), help="Per channel; over the weights file's and the model's own."),
    ):
        function = option(function)
    return function
