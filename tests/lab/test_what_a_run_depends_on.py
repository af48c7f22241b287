"""A run's hash counts what trains and what alters arithmetic, and neither more nor less; see also its spec."""

import importlib.util
import re
import shutil
from dataclasses import replace
from pathlib import Path

import grimp
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DynamoBackend
from lines import LINE, untimed

from thalweg.lab.engine import Execution, RunSpec, Training, source, train, variables
from thalweg.lab.engine.source import TRAINS, code_hash, own_source
from thalweg.lab.search.plan import ComparisonPlan
from thalweg.records import files as records
from thalweg.records.errors import UserError

# the source


def test_all_that_the_training_loop_imports_is_hashed():
    graph = grimp.build_graph("thalweg")
    imported, todo = set(), ["thalweg.lab.engine.loop", "thalweg.lab.engine.spec"]
    while todo:
        if (name := todo.pop()) not in imported:
            imported.add(name)
            todo += graph.find_modules_directly_imported_by(name)
    assert len(imported) > 50

    def hashed(name):
        path = "/".join(name.split(".")[1:])
        return any(f"{path}.py" == one or f"{path}/".startswith(f"{one}/") for one in TRAINS) or (
            f"{path}/__init__.py".lstrip("/") in TRAINS
        )

    assert sorted(name for name in imported if not hashed(name)) == []
    assert not any(hashed(f"thalweg.{room}") for room in ("experiments.work", "lab.report.words", "bench.step"))


def test_all_that_is_named_as_training_is_there():
    for part in TRAINS:
        path = source.ROOT / part
        assert path.is_file() if part.endswith(".py") else list(path.glob("*.py")), part


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    root = tmp_path_factory.mktemp("copy") / "thalweg"
    shutil.copytree(source.ROOT, root, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("kernels/foreach.py", True),
        ("kernels/cpp/kernels.cpp", True),
        ("equations.py", True),
        ("optim/lamb.py", True),
        ("lab/tasks/base.py", True),
        ("lab/engine/loop.py", True),
        ("studies/pages/numbers.py", False),
        ("report/words.py", False),
        ("report/page.html.j2", False),
        ("studies/recipes/sine.toml", False),
        ("lab/search/plan.py", False),
        ("report/summary.py", False),
        ("bench/step.py", False),
        ("commands/compare.py", False),
        ("records/regimen.py", True),
        ("landscape/paths.py", False),
    ],
)
def test_editing_what_trains_makes_another_hash_and_editing_a_page_does_not(name, counts, package):
    before = own_source.__wrapped__(package)
    kept = (package / name).read_bytes()
    (package / name).write_bytes(kept + b"\n")
    try:
        assert (own_source.__wrapped__(package) != before) is counts
    finally:
        (package / name).write_bytes(kept)
    assert own_source.__wrapped__(package) == before


def test_a_file_that_is_renamed_or_added_counts_and_what_python_caches_does_not(package, tmp_path):
    root = tmp_path / "thalweg"
    shutil.copytree(package, root)
    before = own_source.__wrapped__(root)
    (root / "optim" / "__pycache__").mkdir()
    (root / "optim" / "__pycache__" / "lamb.cpython-313.pyc").write_bytes(b"")
    assert own_source.__wrapped__(root) == before
    (root / "optim" / "presets.py").rename(root / "optim" / "settings.py")
    assert own_source.__wrapped__(root) != before


def test_the_source_of_a_users_own_task_and_optimizer_counts_with_the_users_modules_that_it_imports(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = {
        "hashed_task.py": "from small_tasks import Line\nimport hashed_parts.model\nclass Mine(Line): pass\n",
        "hashed_optimizer.py": "from small_optimizers import Plain\nclass Mine(Plain):\n"
        "    def later(self):\n        from hashed_helper import x\n",
        "hashed_helper.py": "x = 1\n",
        "hashed_parts/__init__.py": "",
        "hashed_parts/model.py": "from . import blocks\n",
        "hashed_parts/blocks.py": "import torch\n",
        "hashed_aside.py": "y = 1\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def found():
        return code_hash.__wrapped__("hashed_task:Mine", "hashed_optimizer.Mine")

    seen = [found()]
    for name in texts:
        (tmp_path / name).write_text(texts[name] + "# and more\n")
        seen.append(found())
    assert len(set(seen)) == len(texts)
    assert seen[-1] == seen[-2]  # nothing imports the last
    assert RunSpec("hashed_task:Mine", 1, 1, "hashed_optimizer.Mine", {}).stamped().code == seen[-1]


def test_an_installed_optimizer_counts_with_its_own_module_alone():
    assert source._source_of(__import__("torch").optim.RMSprop) == b"torch.optim.rmsprop\0" + (
        Path(importlib.util.find_spec("torch.optim.rmsprop").origin).read_bytes()
    )


# the environment


REFUSED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
    "ACCELERATE_FP8_BACKEND": "TE",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "ACCELERATE_USE_SAGEMAKER": "true",
    **dict.fromkeys(variables.LAUNCHERS, "2"),
}
WITHOUT_EFFECT = {
    "ACCELERATE_ALLOW_CP_STANDALONE": "true",
    "ACCELERATE_BYPASS_DEVICE_MAP": "true",
    "ACCELERATE_CPU_AFFINITY": "1",
    "ACCELERATE_DEBUG_MODE": "true",
    "ACCELERATE_DOWNCAST_BF16": "true",
    "ACCELERATE_DYNAMO_MODE": "max-autotune",
    "ACCELERATE_ENABLE_RICH": "false",
    "ACCELERATE_FP8_BACKEND": "NO",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_GRADIENT_CLIPPING": "0.001",
    "ACCELERATE_INIT_INCLUDE_BUFFERS": "true",
    "ACCELERATE_LOG_LEVEL": "info",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": "DATA_PARALLEL",
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_CPU": "true",
    "FORK_LAUNCHED": "1",
    "FSDP_OFFLOAD_PARAMS": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
}
OF_THE_LAUNCHER = {
    "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "PMI_RANK",
    "PYTORCH_ENABLE_MPS_FALLBACK", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "PT_HPU_LAZY_MODE",
    "DEEPSPEED_USE_HPU", "XLA_USE_BF16", "XLA_DOWNCAST_BF16", "USE_TORCH_XLA",
}  # fmt: skip
BEHIND_A_SWITCH = ("ACCELERATE_CONFIG_DS_", "ACCELERATE_DEEPSPEED_", "ACCELERATE_FP8_", "FSDP_", "PARALLELISM_CONFIG_")
READ = re.compile(r'(?:environ(?:\.get\(|\[)|getenv\(|_from_env\()\s*"([A-Z][A-Z0-9_]+)"')


def test_whatever_accelerate_reads_from_the_environment_has_been_thought_of():
    """A release of Accelerate that reads another one fails here: refuse it, give it, or see that it does nothing."""
    root = Path(importlib.util.find_spec("accelerate").origin).parent
    files = [*root.glob("*.py"), *(root / "utils").glob("*.py")]
    aside = {"launch.py", "launchers.py", "tracking.py"}
    found = {name for path in files if path.name not in aside for name in READ.findall(path.read_text())}
    found -= {"FOO"}  # of a docstring
    assert found > {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_USE_FSDP", "ACCELERATE_TORCH_DEVICE"}
    known = {*REFUSED, *WITHOUT_EFFECT, *OF_THE_LAUNCHER}
    assert sorted(name for name in found - known if not name.startswith(BEHIND_A_SWITCH)) == []


@pytest.fixture
def anew():
    """Accelerate as in a process of its own, which reads all variables again."""

    def forget():
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    forget()
    yield
    forget()


SHORT = replace(LINE, steps=2)


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_a_run_is_refused_by_its_name(name, monkeypatch, tmp_path, anew):
    monkeypatch.setenv(name, REFUSED[name])
    line = rf"^{name}={REFUSED[name]} is set in the environment: unset it; [^\n]+$"
    with pytest.raises(UserError, match=line):
        train(SHORT, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    with pytest.raises(UserError, match=line):
        ComparisonPlan(("small_tasks:Line",), (16,), ("sgd",), 1, 1, 1, steps=2).cells(tmp_path)


def test_what_agrees_with_a_run_is_not_refused(monkeypatch, tmp_path, anew):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train(replace(SHORT, precision="bf16"), tmp_path)["status"] == "finished"
    with pytest.raises(UserError, match="--precision sets the precision of a run, here fp16"):
        variables.check("fp16")


def test_where_there_is_an_accelerator_a_run_is_on_it(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for name, value in {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}.items():
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            with pytest.raises(UserError, match=f"^{name}={value} is set in the environment"):
                variables.check("no")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:1")
    variables.check("no")


def test_what_is_refused_is_given_to_accelerate_as_well(monkeypatch, tmp_path, anew):
    monkeypatch.setattr(variables, "check", lambda precision: None)
    for name in ("GRADIENT_ACCUMULATION_STEPS", "MIXED_PRECISION", "DYNAMO_BACKEND"):
        monkeypatch.setenv(f"ACCELERATE_{name}", REFUSED[f"ACCELERATE_{name}"])
    made = Training(SHORT, tmp_path, Execution()).accelerator
    assert (made.gradient_accumulation_steps, made.mixed_precision) == (1, "no")
    assert made.state.dynamo_plugin.backend == DynamoBackend.NO


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return untimed(train(SHORT, tmp_path_factory.mktemp("plain")))


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_remains_does_not_change_a_run(name, plain, monkeypatch, tmp_path, anew):
    monkeypatch.setenv(name, WITHOUT_EFFECT[name])
    assert untimed(train(SHORT, tmp_path)) == plain
    if name.startswith("ACCELERATE_"):
        assert f"{name}={WITHOUT_EFFECT[name]}" in records.read_json(tmp_path / "environment.json")["variables"]


@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [
        ("NVIDIA_TF32_OVERRIDE", "0", ""),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", "0"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16", "STRICT"),
    ],
)
def test_what_alters_the_precision_of_products_is_part_of_the_hash(name, value, neutral, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    before = code_hash.__wrapped__("digits", "alto")
    monkeypatch.setenv(name, neutral)
    assert code_hash.__wrapped__("digits", "alto") == before
    monkeypatch.setenv(name, value)
    assert code_hash.__wrapped__("digits", "alto") != before


def test_what_tunes_arithmetic_is_recorded_but_no_path_and_no_workers_own_device(monkeypatch):
    for name, value in {
        "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "3", "TORCH_HOME": "/home/me", "CUDA_VISIBLE_DEVICES": "3",
        "MLFLOW_TRACKING_PASSWORD": "hunter2",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = records.environment()
    assert {"MKL_CBWR=COMPATIBLE", "OMP_NUM_THREADS=3"} <= set(found["variables"].split(" "))
    assert not any(word in found["variables"] for word in ("TORCH_HOME", "VISIBLE_DEVICES", "hunter2"))
    assert int(found["threads"]) >= 1
    assert found["float32 products"] == "highest"


@pytest.mark.parametrize("kind", ["site-packages", "dist-packages"])
def test_packages_that_the_system_or_the_user_has_are_installed_ones(kind, tmp_path, monkeypatch):
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "elsewhere.abi3.so").write_bytes(b"\x7fELF\0")
    (tmp_path / "imports_elsewhere.py").write_text("import elsewhere\n\n\nclass Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / kind)
    assert source._file_of("elsewhere") == tmp_path / kind / "elsewhere.abi3.so"
    there = type("Mine", (), {"__module__": "imports_elsewhere"})
    assert source._source_of(there) == b"imports_elsewhere\0" + (tmp_path / "imports_elsewhere.py").read_bytes()
