"""Where a layer lies: slices, strides, alignment, and what is left to another backend."""

from __future__ import annotations

import pytest
import torch
from kernel_layers import CHUNK, HYPER, TENSORS, Launches, assert_agree, both, clone, kernels_only, make_layers, step
from torch import Tensor

from thalweg.kernels import single


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((5, 3, 4), (1, 2)), ((3, 2, 5), (2,)), ((2, CHUNK + 1), (1,)), ((4, 3), (0, 1)), ((1, 9), (1,))],
)
def test_slices_over_the_last_axes_have_norms_of_their_own(shape, dims, monkeypatch):
    layers = make_layers([shape, (2, *shape[1:])], norm_dims=dims)
    layers[0].param[0] *= 10
    whole = [layer._replace(norm_dims=None) for layer in clone(layers)]
    assert_agree(*kernels_only(monkeypatch, layers))
    step(whole, HYPER)
    if len(dims) < len(shape) and shape[0] > 1:
        assert not torch.allclose(layers[0].param, whole[0].param)


def test_slices_are_rounded_by_their_place_in_the_parameter():
    layers = make_layers([(5, 7)], torch.bfloat16, torch.float32, norm_dims=(1,))
    assert_agree(*both(layers, stochastic_rounding=True))


@pytest.mark.parametrize("case", ["first axis", "no axes", "permuted slices", "strided", "subclass", "float64 step"])
def test_what_the_kernels_cannot_walk_is_left_to_single(case, monkeypatch):
    odd, plain = make_layers([(4, 6), (4, 6)])
    if case == "first axis":
        odd = odd._replace(norm_dims=(0,))
    elif case == "no axes":
        odd = odd._replace(norm_dims=())
    elif case == "permuted slices":
        odd = odd._replace(norm_dims=(1,), **{k: getattr(odd, k).t().contiguous().t() for k in TENSORS})
    elif case == "strided":
        odd = odd._replace(**{k: torch.cat([getattr(odd, k)] * 2, 1)[:, ::2] for k in TENSORS})
    elif case == "subclass":
        odd = odd._replace(exp_avg=odd.exp_avg.as_subclass(Subclass))
    else:
        odd = odd._replace(step=torch.tensor(3.0, dtype=torch.float64))
    left = []
    original = single.step
    monkeypatch.setattr(single, "step", lambda layers, *rest: (left.append(len(layers)), original(layers, *rest)))
    assert_agree(*both([odd, plain]))
    assert left == [2, 1]  # the oracle's, and the odd one


class Subclass(Tensor):
    """Like low-bit state: what its memory holds is its own business."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def test_one_dense_layout_is_walked_as_it_lies(monkeypatch):
    layers = [
        layer._replace(**{k: getattr(layer, k).contiguous(memory_format=torch.channels_last) for k in TENSORS})
        for layer in make_layers([(3, 4, 2, 5), (2, 3, 1, 2)])
    ]
    assert_agree(*kernels_only(monkeypatch, layers))


def test_a_gradient_laid_out_otherwise_is_copied(monkeypatch):
    layers = make_layers([(4, 6), (3, 4, 2, 5)])
    layers[0] = layers[0]._replace(grad=layers[0].grad.t().contiguous().t())
    layers[1] = layers[1]._replace(grad=layers[1].grad[:1].expand(3, 4, 2, 5))
    assert_agree(*kernels_only(monkeypatch, layers))


def test_a_gradient_whose_memory_is_another_tensor_is_copied(monkeypatch):
    """The imaginary part of a conjugate is stored with the other sign, a zero of forward differentiation not at all."""
    layers = make_layers([(40,), (33,)], torch.float32)
    layers[0] = layers[0]._replace(grad=torch.complex(layers[0].grad, -layers[0].grad).conj().imag)
    layers[1] = layers[1]._replace(grad=torch._efficientzerotensor(33))
    assert layers[0].grad.is_neg()
    assert_agree(*kernels_only(monkeypatch, layers))


def test_only_what_lies_at_multiples_of_sixteen_bytes_is_said_to(monkeypatch):
    launches = Launches(monkeypatch)
    layers = []
    for layer in make_layers([(CHUNK + 1,), (33,)], torch.float32):
        layers.append(layer._replace(**{k: torch.cat((torch.ones(1), getattr(layer, k)))[1:] for k in TENSORS}))
    assert layers[0].param.data_ptr() % 16 == 4
    even = make_layers([(40,)], torch.float32, seed=1)
    odd_slices = make_layers([(2, 5)], torch.float32, norm_dims=(1,))
    for case, alignments in (([*layers, *even], [1, 16]), (odd_slices, [1])):
        launches.log.clear()
        assert_agree(*both(case))
        assert [k["ALIGNMENT"] for name, _, k in launches.log if k.get("MEASURE")] == alignments
