"""E.of(base): classes that frameworks build by name and arguments, and that pickle finds."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys

import jsonargparse
import pytest
import pytorch_optimizer
import torch
from hydra.utils import instantiate
from support import assert_same, make_grads, make_params, take_steps
from torch.optim import NAdam, Optimizer, RAdam, RMSprop

import thalweg
from thalweg import E

BASES = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, RMSprop, NAdam, RAdam, pytorch_optimizer.Lion]


@pytest.mark.parametrize("base", BASES)
def test_there_is_one_class_which_pickle_and_its_name_find(base):
    cls = E.of(base)
    assert pickle.loads(pickle.dumps(cls)) is copy.deepcopy(cls) is E.of(base) is cls
    assert getattr(sys.modules[cls.__module__], cls.__qualname__) is cls


def test_another_process_finds_it_without_having_made_it_and_that_of_a_class_in_a_script_is_pickled_too():
    """Its name is of no use in a script: the module's has two underscores itself."""
    pickled = pickle.dumps((E.of(RMSprop), thalweg.EAdamW))
    code = (
        f"import pickle; print(*(cls.__name__ for cls in pickle.loads({pickled!r})))\n"
        "import torch, thalweg\n"
        "class Own(torch.optim.SGD): pass\n"
        "cls = thalweg.E.of(Own)\n"
        "assert pickle.loads(pickle.dumps(cls)) is cls"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ERMSprop", "EAdamW"]


@pytest.mark.parametrize("base", BASES)
def test_its_constructor_has_the_arguments_of_both_once(base):
    signature = inspect.signature(E.of(base))
    of_base = inspect.signature(base).parameters
    own = ("explore_alpha", "explore_beta") if base is RMSprop else ("alpha", "beta")
    assert signature.parameters.keys() == of_base.keys() | {*own, "nonfinite", "reevaluates", "process_group"}
    for name, p in of_base.items():
        assert signature.parameters[name].default == p.default
    assert [signature.parameters[name].default for name in own] == [-5.0, 0.99]


@pytest.mark.parametrize("name", ["E__torch__optim__Nothing", "E__torch__nn__Linear", "E__no__such", "E__"])
def test_a_name_of_no_optimizer_is_no_attribute(name):
    with pytest.raises(AttributeError, match=f"module 'thalweg' has no attribute '{name}'"):
        getattr(thalweg, name)


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("thalweg.ALTO", {"alpha": 0.5, "beta": 0.01}),
        ("thalweg.Lamb", {}),
        ("thalweg.EAdamW", {"alpha": 0.5, "beta": 0.01}),
        ("thalweg.E__torch__optim__RAdam", {"alpha": 0.5, "beta": 0.01}),
        ("thalweg.E__torch__optim__RMSprop", {"explore_alpha": 0.5, "explore_beta": 0.01}),
    ],
)
def test_jsonargparse_and_hydra_build_it_by_its_path(path, own):
    """As LightningCLI does, which is jsonargparse's; betas come as a list there, and as OmegaConf's in Hydra."""
    betas = {} if "RMSprop" in path else {"betas": [0.8, 0.95]}
    params = make_params()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Optimizer, "optimizer", skip={"params"}, instantiate=False, required=True)
    config = parser.parse_object({"optimizer": {"class_path": path, "init_args": {"lr": 0.03, **betas, **own}}})
    given = {name: value for name, value in config.optimizer.init_args.as_dict().items() if value is not None}
    name = path.rpartition(".")[2]
    built = getattr(thalweg, name)(params, **given)
    by_hydra = instantiate({"_target_": path, "_partial_": True, "lr": 0.03, **betas, **own})(make_params())
    for optimizer in (built, by_hydra):
        (group,) = optimizer.param_groups
        assert group["lr"] == 0.03
        assert list(group.get("betas", ())) == [*betas.get("betas", ())]
        assert type(group.get("betas", ())) in (list, tuple)
        if own:
            assert sorted(
                group[key]
                for key in group
                if key in ("alpha", "beta", "explore_alpha", "explore_beta")
                and not (key == "alpha" and "RMSprop" in path)
            ) == [0.01, 0.5]
    expected = make_params()
    for optimizer, some in ((built, params), (by_hydra, by_hydra.param_groups[0]["params"])):
        take_steps(optimizer, some, make_grads(some, 2))
    assert_same(params, by_hydra.param_groups[0]["params"])
    assert not torch.equal(params[0], expected[0])
