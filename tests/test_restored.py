"""What fails half way leaves an optimizer as it was."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from support import make_grads, make_params, take_steps
from torch.optim.lr_scheduler import LinearLR

from thalweg import ALTO, EAdamW
from thalweg.optim.state import restored_on_error


def contents(value):
    """What there is at every depth, each container and tensor by its identity."""
    if isinstance(value, dict):
        return [id(value), [(k if isinstance(k, str) else id(k), contents(v)) for k, v in value.items()]]
    if isinstance(value, list | tuple | deque):
        return [id(value), [contents(v) for v in value]]
    return id(value)


@pytest.mark.parametrize("build", [EAdamW, ALTO])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_optimizer_is_restored_with_all_that_it_holds(build, error):
    params = make_params()
    optimizer = build([{"params": params[:2], "tags": {"a"}}, {"params": params[2:]}])
    optimizer.inner = torch.optim.SGD(params, lr=0.1)
    optimizer.scheduler = LinearLR(optimizer.inner)
    optimizer.past = deque([1, [2]], maxlen=2)
    take_steps(optimizer, params, make_grads(params, 1))

    held = [optimizer, *([optimizer.base] if build is EAdamW else []), optimizer.inner, optimizer.scheduler]
    before = [contents(vars(o)) for o in held]

    def spoil(error=None):
        optimizer.param_groups[0]["tags"].add("b")
        optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["betas"] = None
        del optimizer.param_groups[0]["eps"]
        optimizer.param_groups.pop()
        optimizer.param_groups = [{}]
        optimizer.state[params[0]].clear()
        optimizer.state[params[1]]["new"] = 1
        optimizer.state.clear()
        optimizer.past.append(3)
        optimizer.inner.state = optimizer.scheduler.base_lrs = optimizer.new = None
        optimizer.scheduler.last_epoch = 7
        if error is not None:
            raise error

    with restored_on_error(optimizer):
        pass
    with pytest.raises(error), restored_on_error(optimizer):
        spoil(error)
    assert [contents(vars(o)) for o in held] == before
    assert optimizer.param_groups[0]["tags"] == {"a"}
    with restored_on_error(optimizer):
        spoil()
    assert optimizer.past == deque([[2], 3])
