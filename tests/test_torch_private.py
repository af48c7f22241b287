"""What torch keeps private is used in one file of the package, where a new torch is tried out."""

from __future__ import annotations

import ast
from pathlib import Path

import thalweg

ROOT = Path(thalweg.__file__).parent
HERE = ROOT / "torch_private.py"
OF_OPTIMIZERS = {  # and of tensors; ours are called otherwise
    *("_init_group", "_accelerator_graph_capture_health_check", "_optimizer_step_pre_hooks"),
    *("_optimizer_step_post_hooks", "_optimizer_load_state_dict_pre_hooks", "_step_supports_amp_scaling"),
    *("_version", "_local_tensor", "_is_zerotensor"),
}


def is_private(name):
    return name.startswith("_") and not name.startswith(("__", "_foreach_"))


def found_in(source):
    """Private names of torch, as ``torch._C``, as imported, as an attribute of anything, or as a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            path = ast.unparse(node)
            if path.startswith("torch.") and any(map(is_private, path.split("."))):
                yield path
            elif node.attr in OF_OPTIMIZERS and ast.unparse(node.value) != "self":
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield from filter(is_private, [*node.module.split("."), *(alias.name for alias in node.names)])
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (part for name in names if name[0] == "torch" for part in name if is_private(part))
        elif isinstance(node, ast.Constant) and node.value in OF_OPTIMIZERS:
            yield node.value


def test_private_names_of_torch_are_in_one_file():
    found = {str(path.relative_to(ROOT)): [*found_in(path.read_text())] for path in ROOT.rglob("*.py") if path != HERE}
    assert len(found) > 100
    assert {path: names for path, names in found.items() if names} == {}


def test_they_are_found():
    source = """
import torch._dynamo
from torch._subclasses import fake_tensor
from torch.optim.optimizer import _use_grad_for_differentiable
torch._C._x
optimizer._init_group
getattr(t, "_local_tensor", t)
torch._foreach_add_
self._init_group
"""
    names = ["_dynamo", "_subclasses", "_use_grad_for_differentiable", "torch._C", "torch._C._x", "_init_group"]
    assert sorted(found_in(source)) == sorted([*names, "_local_tensor"])
    assert len([*found_in(HERE.read_text())]) >= 10
