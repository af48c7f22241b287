"""When the Triton kernels are picked, and what is said where they are not available."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from thalweg import ALTO
from thalweg.kernels import Wanted, dispatch, triton
from thalweg.kernels.dispatch import choose, describe

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("runs", "capability", "version"),
    [
        (True, (8, 0), "12.8"),
        (True, (9, 0), "13.0"),
        (False, (7, 5), "12.8"),
        (False, (9, 4), None),
        (False, None, "12.8"),
    ],
)
def test_e_leaves_gpus_that_the_kernels_are_not_compiled_for_to_the_base(runs, capability, version, monkeypatch):
    """As those of AMD, for which torch says no version of CUDA; and all of them without Triton."""
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(triton, "probe", lambda device: None)
    assert dispatch._triton_runs_on.__wrapped__(CUDA) is runs
    monkeypatch.setattr(dispatch, "_triton", lambda: importlib.import_module("triton_is_not_there"))
    assert not dispatch._triton_runs_on.__wrapped__(CUDA)


def test_where_triton_cannot_build_the_base_steps_and_a_warning_says_why(monkeypatch):
    def refuse(device):
        raise RuntimeError("no C compiler")

    triton.probe(torch.device("cpu"))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton, "probe", refuse)
    with pytest.warns(UserWarning, match=r"^Triton's kernels are not available on cuda.*: no C compiler$"):
        assert not dispatch._triton_runs_on.__wrapped__(CUDA)


def test_triton_is_picked_for_cuda_alone():
    fused = Wanted(fused=True)
    assert choose(fused, CUDA) is triton
    assert describe(fused, CUDA) == "triton on cuda"
    assert describe(fused, torch.device("cpu")) == "fused on cpu"
    assert describe(Wanted(), CUDA) == "foreach on cuda"


def test_without_triton_the_constructor_says_what_to_install(monkeypatch):
    text = r"fused must be None or False for a parameter on cuda:0 without Triton \(pip install triton\), got True"
    with FakeTensorMode():
        params = [Parameter(torch.empty(2, device="cuda"))]
        with monkeypatch.context() as without:
            without.setattr("thalweg.optim.hyperparameters.find_spec", lambda name: None)
            with pytest.raises(ValueError, match=text):
                ALTO(params, fused=True)
            ALTO(params)
        ALTO(params, fused=True)  # installed since


def test_other_devices_are_refused():
    with FakeTensorMode():
        params = [Parameter(torch.empty(2, device="xpu"))]
        with pytest.raises(ValueError, match=r"fused must be None or False for a parameter on xpu:0, .*, got True"):
            ALTO(params, fused=True)


SCRIPT = """
import sys, torch
sys.modules["triton"] = None
import thalweg
from thalweg.kernels import Wanted
from thalweg.kernels.dispatch import choose
thalweg.ALTO([torch.nn.Parameter(torch.ones(2))], fused=True)
try:
    choose(Wanted(fused=True), torch.device("cuda"))
except ImportError as error:
    print(error)
"""


def test_without_triton_all_else_works_and_a_step_on_cuda_says_what_to_install():
    """A parameter may be moved to CUDA after the optimizer was made."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    assert done.stdout == "fused=True for parameters on CUDA needs Triton: pip install triton\n"


def test_importing_the_package_does_not_import_triton():
    code = "import sys, thalweg; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
