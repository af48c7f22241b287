"""Who steps what: the backend that is asked for, and another where it cannot."""

from __future__ import annotations

import pytest
import torch
from kernels.kernel_layers import HYPER, TENSORS, make_layers
from support import assert_near, clone_params, make_grads, take_steps
from torch.nn import Parameter

from thalweg import ALTO, Lamb
from thalweg.kernels import UNWALKABLE, Wanted, cpp, foreach, single
from thalweg.kernels.dispatch import assign

WAYS = {
    "fused": Wanted(fused=True),
    "foreach": Wanted(foreach=True),
    "single": Wanted(foreach=False),
}
LAST = torch.channels_last


def plain(layer):
    return layer


def all_of_one_other_layout(layer):
    return layer._replace(**{name: getattr(layer, name).contiguous(memory_format=LAST) for name in TENSORS})


def gradient_laid_out_otherwise(layer):
    return layer._replace(grad=layer.grad.contiguous(memory_format=LAST))


def state_laid_out_otherwise(layer):
    return layer._replace(exp_avg=layer.exp_avg.contiguous(memory_format=LAST))


def with_gaps(layer):
    return layer._replace(**{name: torch.cat([getattr(layer, name)] * 2, 3)[..., ::2] for name in TENSORS})


def norms_over_the_first_axis(layer):
    return layer._replace(norm_dims=(0,))


def without_memory(layer):
    return layer._replace(memory=UNWALKABLE)


EXPECTED = {  # of fused and of foreach
    plain: (cpp, foreach),
    all_of_one_other_layout: (cpp, foreach),
    gradient_laid_out_otherwise: (cpp, single),
    state_laid_out_otherwise: (single, single),
    with_gaps: (single, single),
    norms_over_the_first_axis: (single, foreach),
    without_memory: (single, foreach),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", EXPECTED, ids=lambda change: change.__name__)
def test_who_steps_a_layer_and_that_its_company_is_left_alone(change, way):
    other, layer = make_layers([(7,), (2, 3, 4, 5)], torch.float32)
    chosen = {"fused": cpp, "foreach": foreach, "single": single}[way]
    wanted = dict(zip(("fused", "foreach"), EXPECTED[change], strict=True)).get(way, single)
    found = [(backend, len(layers)) for backend, layers in assign(WAYS[way], [other, change(layer)], HYPER)]
    assert found == ([(chosen, 2)] if wanted is chosen else [(chosen, 1), (wanted, 1)])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", [Lamb, ALTO, lambda params, **kwargs: ALTO(params, alpha=0.0, **kwargs)])
def test_a_gradient_laid_out_otherwise_is_the_same_gradient(build, way):
    """Also where nothing is computed of it first, as of LAMB's."""
    params = [Parameter(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)))]
    others = clone_params(params)
    rows = make_grads(params, 3)
    take_steps(build(others, foreach=False), others, rows)
    optimizer = build(params, fused=WAYS[way].fused, foreach=WAYS[way].foreach)
    take_steps(optimizer, params, [[g.contiguous(memory_format=LAST) for g in row] for row in rows])
    assert_near(params, others, 1e-6)
