"""thalweg.jax without torch, and thalweg's own names, which are imported at first use."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch

import thalweg

WITHOUT_TORCH = """
import importlib.abc, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch is blocked")

sys.meta_path.insert(0, NoTorch())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_thalweg_jax_trains_where_torch_cannot_be_imported():
    code = """
import jax.numpy as jnp, optax
import thalweg.jax as tj
params = jnp.ones(3)
optimizer = optax.chain(tj.scale_by_exploration(-5, 0.99), tj.alto(1e-3))
updates, _ = optimizer.update(params, optimizer.init(params), params)
assert not any(name.partition(".")[0] == "torch" for name in sys.modules)
try:
    from thalweg import ALTO
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(WITHOUT_TORCH + code) == "torch is blocked"


def test_every_public_name_is_there_and_listed():
    names = {}
    exec("from thalweg import *", names)
    assert set(thalweg.__all__) <= names.keys()
    assert set(thalweg.__all__) <= set(dir(thalweg))
    assert set(thalweg._HOMES) == set(thalweg.__all__)
    assert all(names[name] is getattr(thalweg, name) for name in thalweg.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'thalweg' has no attribute 'nothing'$"):
        _ = thalweg.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'thalweg'"):
        exec("from thalweg import nothing")


FIRST = ("import thalweg.optim.groups, thalweg.lab.contenders", "from thalweg.optim.groups import check_coverage")


def test_thalweg_imports_nothing_but_at_first_use_and_param_groups_is_the_function_whatever_was_imported_first():
    """In one process, which forgets the package in between."""
    code = "import sys, thalweg; print('torch' in sys.modules); thalweg.ALTO; print('torch' in sys.modules)"
    for first in FIRST:
        code += f"""
for name in [name for name in sys.modules if name.partition(".")[0] == "thalweg"]:
    del sys.modules[name]
{first}
from thalweg import param_groups
import thalweg
print(type(param_groups).__name__)
assert thalweg.param_groups is param_groups"""
    assert run(code).split() == ["False", "True", "function", "function"]


def test_optimizers_are_pickled_and_copied_as_ever():
    optimizer = thalweg.EAdamW([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert isinstance(other, thalweg.E)
        assert other.param_groups[0]["explore_alpha"] == -5.0
    assert pickle.loads(pickle.dumps(thalweg.ALTO)) is thalweg.ALTO
