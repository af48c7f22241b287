"""Docstrings as pages: a bar is a bar, a sentence with a colon a sentence, and a short name the thing it names."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

VERBATIM = re.compile(r"(``.*?``|:math:`.*?`)")
BAR = re.compile(r"(?<!\\)\|")
PLAIN = ("attribute", "data", "property")
SECTIONS = ("Args:", "Raises:", "Returns:", "Attributes:")
NAMES = {
    "Tensor": "torch.Tensor",
    "Optimizer": "torch.optim.Optimizer",
    "ParamsT": "torch.optim.optimizer.ParamsT",
    "ArrayLike": "jax.typing.ArrayLike",
    "DTypeLike": "jax.typing.DTypeLike",
    "NDArray": "numpy.typing.NDArray",
    "Axes": "matplotlib.axes.Axes",
    "defaultdict": "collections.defaultdict",
    "UserError": "thalweg.records.errors.UserError",
    "TaskFault": "thalweg.records.errors.TaskFault",
    "Terminated": "thalweg.lab.signals.Terminated",
    "Results": "thalweg.records.results.Results",
    "Groups": "thalweg.optim.exploration.Groups",
    "OnEvent": "thalweg.lab.engine.run.OnEvent",
    "Mask": "thalweg.jax.alto.Mask",
    "NormAxes": "thalweg.jax.trust_ratio.NormAxes",
    "StateDtype": "thalweg.kernels.rounding.StateDtype",
    "ClassForm": "thalweg.optim.adaptor.ClassForm",
}
"""Types that signatures call by the names under which only a type checker imports them."""


def with_bars(lines: list[str]) -> list[str]:
    """The same lines with bars that reST prints, where |α| would name a substitution, but for literals and formulas."""
    done: list[str] = []
    verbatim = None  # how deep the line stood that began a literal block
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if verbatim is not None and line.strip() and depth <= verbatim:
            verbatim = None
        if verbatim is None and not line.lstrip().startswith((">>>", "...")):
            if line.rstrip().endswith("::") or ".. math::" in line:
                verbatim = depth
            if ".. math::" not in line:
                parts = VERBATIM.split(line)
                parts[::2] = [BAR.sub(r"\\|", part) for part in parts[::2]]
                line = "".join(parts)
        done.append(line)
    return done


def setup(app: Sphinx) -> dict[str, bool]:
    """Around napoleon, which takes the words before a colon for a type where an attribute is described."""
    sentences: dict[str, list[str]] = {}

    def before(_app, what, name, _object, _options, lines):
        if what in PLAIN and not any(line.strip() in SECTIONS for line in lines):
            sentences[name] = list(lines)

    def after(_app, _what, name, _object, _options, lines):
        lines[:] = with_bars(sentences.pop(name, lines))

    app.connect("autodoc-process-docstring", before, priority=100)
    app.connect("autodoc-skip-member", without_words)
    app.connect("autodoc-process-docstring", after, priority=900)
    app.connect("autodoc-process-signature", with_defaults)
    app.connect("missing-reference", by_full_name, priority=100)
    app.connect("config-inited", of_others)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def without_words(_app, _what, _name, member, skip, _options):
    """Of a field of a named tuple Python says which it is, and no more: the signature says that already."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else skip


def with_defaults(_app, _what, _name, _object, _options, signature, returns):
    """The default of a dataclass's field that a factory makes, in Python's syntax."""
    return (signature and signature.replace("<factory>", "..."), returns)


def of_others(_app: Sphinx, config: Config) -> None:
    """What Sphinx, which has noted the short name, would say of a class that is not ours."""
    others = [name for name, full in NAMES.items() if not full.startswith("thalweg.")]
    config.nitpick_ignore = [*config.nitpick_ignore, *(("py:class", name) for name in others)]


def by_full_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element) -> nodes.Node | None:
    """What a short name means. Ours must be on a page; for others, whoever asks next sees the full name."""
    full = NAMES.get(node["reftarget"])
    if node.get("refdomain") != "py" or full is None:
        return None
    node["reftarget"] = full
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, shown)
