"""The code of README and pages runs as it stands, and links lead somewhere; examples with >>>: theory/test_pages.py."""

import math
import re
import textwrap
from pathlib import Path

import pytest
import torch

from thalweg import ALTO, param_groups

ROOT = Path(__file__).parents[1]
WRITTEN_BY_HAND = [path for path in ROOT.glob("docs/**/*.md") if "generated" not in path.parts]
PAGES = sorted([*ROOT.glob("*.md"), *WRITTEN_BY_HAND, *ROOT.glob("benchmarks/*.md")])


def blocks(name: str) -> list[str]:
    found = re.findall(r"```python\n(.*?)^ *```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found if not block.lstrip().startswith(">>>")]


def landscape(it):
    assert it["measured"].keys() >= {"a_over_g", "trust_ratio/0.weight", "gradient_noise_scale"}
    assert it["instruments"].loss() < math.log(3)  # it trains
    return it["optimizer"].state and it["top"].tolist() == it["pairs"].values.tolist()


def sharpness(it):
    torch.manual_seed(0)
    p, q = (torch.nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2))
    loss = 4.0 * p[0] ** 2 + p[1] ** 2 + q.square().sum()
    return it["sharpness"](loss, [p, q], iterations=100) == pytest.approx(8.0)


def own_task(it):
    example = (ROOT / "examples" / "own_task.py").read_text()
    return blocks("docs/lab.md")[0].strip() in example and it["Wine"].budgets


WRITTEN = """
import tempfile, torch, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
old = torch.nn.Linear(8, 1)
adamw = torch.optim.AdamW(old.parameters(), lr=0.5)
old(torch.ones(2, 8)).square().sum().backward()
adamw.step()
folder, model = tempfile.mkdtemp(), torch.nn.Linear(8, 1)
dcp.save(dict(zip(("model", "optimizer"), get_state_dict(old, adamw))), checkpoint_id=folder)
"""


def went_on(it):
    new = it["optimizer"]
    assert (type(new).__name__, new.param_groups[0]["lr"]) == ("ALTO", 0.5)
    for p, q in zip(it["model"].parameters(), it["old"].parameters(), strict=True):
        kept = it["adamw"].state[q]
        assert p.equal(q)
        assert all(new.state[p][name].equal(kept[name]) for name in kept)
        assert not new.state[p]["explore_ema"].any()
    return True


def trained(it):
    assert it["loss"].item() < 0.5 < math.log(4)
    return isinstance(it["optimizer"].base, torch.optim.SGD)


def of_deepspeed(it):
    """Bias correction off, the schedule's factor on lr, also after a checkpoint; the steps are tests/twins'."""
    optimizer, lr = it["optimizer"], 2e-3 * math.sqrt(1 - 0.999) / (1 - 0.9)
    (group,) = optimizer.param_groups
    assert group["lr"] == pytest.approx(lr, rel=1e-12)
    assert (group["bias_correction"], group["ratio_clip"], group["eps"]) == (False, (0.01, 10.0), 1e-8)
    assert it["later"].param_groups[0]["lr"] == pytest.approx(0.01 / (1 - 0.9**2), rel=1e-12)  # of the second step
    it["model"](torch.ones(3, 8)).sum().backward()
    optimizer.step()
    it["scheduler"].step()
    return group["lr"] < lr


def loaded(it):
    """Of a file; of AdamW, in two groups and at our rate."""
    new, adamw = it["new_optimizer"], it["earlier"]
    assert [(len(group["params"]), group["lr"]) for group in new.param_groups] == [(1, 0.02), (1, 0.02)]
    assert all(new.state[r][name].equal(kept[name]) for r, kept in adamw.state.items() for name in kept)
    assert type(it["resumed_optimizer"]) is ALTO
    return went_on(it)


def trouble(it):
    assert (it["log"]["skipped"], str(it["says"])[:30]) == (1, "a gradient of shape (8, 4) has")
    assert [group["trust_ratio"] for group in it["groups"]] == [True, False, False]
    printed = [line.removeprefix("# ") for line in blocks("docs/trouble.md")[-1].splitlines() if line.startswith("# ")]
    shown = ([tuple(p.shape) for p in g["params"]] for g in param_groups(it["model"], 0.01))
    return [line.partition("]")[0] + "]" for line in printed] == [str(shapes) for shapes in shown]


CODE = [  # what runs together, and what it has made
    *((block, lambda it: it.get("state") or it["optimizer"].state) for block in blocks("README.md")),
    ("\n".join(blocks("docs/jax.md")), lambda it: it["state"]),
    ("\n".join(blocks("docs/landscape.md")), landscape),
    ("\n".join(blocks("docs/lab.md")), own_task),
    ("\n".join(blocks("docs/what-e-does.md")), sharpness),
    ("\n".join(blocks("docs/install.md")), trained),
    ("\n".join(blocks("docs/coming-from.md")), of_deepspeed),
    ("\n".join([WRITTEN, *blocks("docs/checkpoints.md")]), loaded),
    ("\n".join(blocks("docs/trouble.md")), trouble),
]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(("code", "made"), CODE)
def test_the_code_runs(code, made):
    names: dict[str, object] = {}
    exec(compile(code, "the documentation", "exec"), names)
    assert made(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_is_left_out(page):
    run = "\n".join([*(code for code, _ in CODE), *blocks("docs/data.md")])  # the latter: lab/test_original_files.py
    assert [block for block in blocks(page) if block not in run] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [link for link in links if ":" not in link and not (page.parent / link).exists()] == []
