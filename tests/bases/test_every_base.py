"""E around every optimizer of torch, pytorch_optimizer and HeavyBall: what the table of ``docs/bases.md`` says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import write_table
from catalogue import BASES, LIBRARIES, classes
from checks import base_fails_to_resume, claim, compiled, exact, resumes, trains, untouched_at_zero
from driving import drive, gradients, make, shifts, start, wrap
from exclusions import EXCLUDED
from support import assert_same


def rows(test=lambda _: True):
    return pytest.mark.parametrize("base", [pytest.param(base, id=base.name) for base in BASES if test(base)])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_table_has_every_optimizer_of_the_library(library):
    rows = [b.cls for b in BASES if b.library == library]
    excluded = [x.cls for x in EXCLUDED if x.library == library]
    assert set(rows) | set(excluded) == classes(library)
    assert not set(rows) & set(excluded)
    assert len(set(excluded)) == len(excluded)
    names = [b.name for b in BASES]
    assert len(set(names)) == len(names)


def test_the_table_has_what_pytorch_optimizer_lists_itself():
    po = LIBRARIES["pytorch_optimizer"]
    listed = {po.load_optimizer(name) for name in po.get_supported_optimizers()}
    assert len(listed) >= 128
    ours = {getattr(LIBRARIES[x.library], x.cls) for x in (*BASES, *EXCLUDED)}
    assert listed <= ours


@pytest.mark.parametrize("excluded", EXCLUDED, ids=lambda x: x.name)
def test_the_reason_of_an_exclusion_is_true(excluded):
    excluded.check()


@rows()
def test_at_alpha_zero_the_base_is_untouched_bit_for_bit_and_nothing_is_allocated(base):
    untouched_at_zero(base)


@rows()
def test_e_around_the_base_is_the_base_fed_with_the_papers_gradient(base):
    exact(base)


@rows(lambda b: not b.fails_to_resume)
def test_saved_and_loaded_it_goes_on_as_if_it_had_never_stopped(base):
    resumes(base)


@rows(lambda b: bool(b.fails_to_resume))
def test_where_it_cannot_be_resumed_neither_can_the_base_alone(base):
    base_fails_to_resume(base)


@rows()
def test_it_trains(base):
    trains(base)


@pytest.mark.slow
@rows(lambda b: b.foreach)
def test_its_foreach_form_is_the_base_fed_with_the_papers_gradient_bit_for_bit(base):
    for foreach in (False, True):
        exact(base, foreach=foreach)
    # by default torch steps without on the CPU, and pytorch_optimizer mostly with it: seen above
    untouched_at_zero(base, foreach=base.library == "torch.optim")


@rows(lambda b: b.fused)
def test_its_fused_form_is_the_base_fed_with_the_papers_gradient(base):
    untouched_at_zero(base, fused=True)
    exact(base, fused=True)


@pytest.mark.slow
@rows(lambda b: b.compiled)
def test_a_compiled_step_is_the_compiled_base_fed_with_the_papers_gradient(base):
    turn = sum(map(ord, base.name))  # not every form of every base: a minute of compiling
    form = {"foreach": turn % 3 == 0} if base.foreach else {}
    compiled(base, 0.0 if turn % 4 == 0 else 0.5, first=turn % 5 in (1, 3), **form)


@pytest.mark.parametrize("cls", ["AdamW", "Muon", "SOAP", "PSGDKron"])
def test_heavyball_may_consume_the_gradient_and_the_caller_has_it_back(cls):
    base = next(b for b in BASES if b.library == "heavyball" and b.cls == cls)
    base = dataclasses.replace(base, kwargs={"consume_grad": True})
    exact(base)
    params = start(base)
    drive(base, wrap(base, params), params, grads := gradients(base))
    assert_same([p.grad for p in params], grads[-1])
    drive(base, make(base, params), params, grads)
    assert all(p.grad is None for p in params)


def test_the_document_says_what_these_tests_check():
    assert write_table.PATH.read_text() == write_table.render(claim), "run python tests/bases/write_table.py"


@pytest.mark.parametrize("path", ["README.md", "CHANGELOG.md"])
def test_optimizers_are_counted_once_whatever_their_variants(path):
    count = len({(base.library, base.cls) for base in BASES})
    assert f"around {count} optimizers" in (write_table.ROOT / path).read_text()


def test_the_gradients_of_these_tests_are_exact_in_float32_and_far_from_those_without_e():
    base = BASES[0]
    grads = gradients(base)
    for by_hand, row in zip(shifts(grads), grads, strict=True):
        for s, g in zip(by_hand, row, strict=True):
            assert torch.equal((g + s).double(), g.double() + s.double())
            assert torch.equal(g * 8, (g * 8).round())
    assert all(s.any() for row in shifts(grads) for s in row)
