"""What each of two processes does for test_going_on_together.py."""

import os
import platform
import resource
import shutil
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lines import ADAMW, SGD, content, saved
from test_going_on_together import ODD, TIED

from thalweg.commands.terminal import interruptible
from thalweg.lab.engine import Execution, Failed, RunSpec, Stopped, leave_process_group, train
from thalweg.lab.engine.loop import ASK_EVERY
from thalweg.lab.ranks import agreement
from thalweg.lab.saved import checkpoint, weights
from thalweg.lab.signals import handled
from thalweg.records.errors import TaskFault, UserError

SHARDINGS = ("ddp", "fsdp2")
RANK = int(os.environ["RANK"])


def once_at(step):
    def on_event(training, event):
        if (training.step, event) == (step, "step"):
            training.save()
            raise Stopped

    return on_event


def stopped_at(step, spec, folder, execution):
    with pytest.raises(Stopped):
        train(spec, folder, execution=execution, on_event=once_at(step))
    together()


def together():
    torch.distributed.barrier()


def without_a_shared_folder(root):
    for sharding in SHARDINGS:
        execution = Execution(sharding=sharding)
        for name, swapped in (("own", False), ("swapped", True)):
            folders = apart(root, f"{name}-{sharding}", execution)
            mine = [path.name for path in (folders[RANK] / checkpoint.NAME).glob("*/*.distcp")]
            assert mine == [f"__{RANK}_0.distcp"] * (RANK == 0 or sharding == "fsdp2")
            together()
            if swapped and RANK == 1:  # the machines have changed places
                one, two = (folder / checkpoint.NAME for folder in folders)
                for source, to in ((one, one.with_name("aside")), (two, one), (one.with_name("aside"), two)):
                    if source.exists():
                        to.parent.mkdir(exist_ok=True)
                        source.rename(to)
            together()
            steps = []
            train(ODD, folders[RANK], execution=execution, on_event=lambda t, event, steps=steps: steps.append(t.step))
            assert steps[0] == 12
            assert not (folders[RANK] / checkpoint.NAME).exists()
        result = train(ODD, folders[RANK], execution=execution)  # complete on the first process, which is enough
        assert result["status"] == "finished"
        with pytest.raises(UserError, match=r"process 1 finds this run complete in .*-0, the first process does not"):
            train(ODD, folders[1 - RANK], execution=execution)
    for name, rank in (("__1_0.distcp", 1), (checkpoint.METADATA, 0)):
        folders = apart(root, f"without-{name}", execution)
        if rank == RANK:
            shutil.rmtree(folders[rank] / checkpoint.NAME)
        before = content(folders[RANK])
        with pytest.raises(UserError, match=f"cannot resume: {name}, or a part of that, is in none of .*-0/.*-1/"):
            train(ODD, folders[RANK], execution=execution)
        assert content(folders[RANK]) == before


def apart(root, name, execution):
    """A folder for each process, with what each has of a checkpoint."""
    folders = [root / f"{name}-{rank}" for rank in (0, 1)]
    stopped_at(11, ODD, folders[RANK], execution)
    return folders


def asked_for_different_runs(root):
    with pytest.raises(UserError, match="the processes were given different runs"):
        train(replace(ODD, seed=RANK), root / "different")
    assert not (root / "different").exists()


def refused_at_construction(root):
    for k in range(8):
        spec = replace(ODD, optimizer="small_optimizers.RefusesSettings", settings={"lr": 0.2 + k})
        result = train(spec, root / "refused")
        assert (result["failure"], result["reason"]) == ("refused", "ValueError: a lr I do not like")
        together()
        assert sorted(content(root / "refused")) == ["environment.json", "metrics.jsonl", "result.json", "spec.json"]
        together()
        if RANK == 0:
            (root / "refused" / "result.json").unlink()
        together()
    spec = replace(ODD, optimizer="small_optimizers.RefusesOnOneRank", settings=SGD)
    assert train(spec, root / "one-refused")["failure"] == "refused"


def parts_of_one(root):
    for sharding in SHARDINGS:
        train(ODD, root / f"parts-{sharding}", execution=Execution(micro_batch=1, sharding=sharding))


def raised_before_the_first_new_step(root):
    for sharding in SHARDINGS:
        execution, folder = Execution(sharding=sharding), root / f"raised-{sharding}"
        stopped_at(11, ODD, folder, execution)
        together()
        before = content(folder)
        for name in ("__init__", "load_state_dict", "step"):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(torch.optim.AdamW, name, refuse)
                with pytest.raises(UserError, match=r"cannot resume from .*checkpoint \(refused: ValueError: not to"):
                    train(ODD, folder, execution=execution)
            together()
            assert content(folder) == before
        train(ODD, folder, execution=execution)


def refuse(*_, **__):
    raise ValueError("not today")


def half_a_checkpoint(root):
    """Damaged in what the other process reads, it is used by none; the one before it is."""
    for sharding in SHARDINGS:
        folder, said, steps, execution = root / f"half-{sharding}", [], [], Execution(sharding=sharding)
        stopped_at(11, ODD, folder, execution)
        (first,) = (folder / checkpoint.NAME).iterdir()
        together()
        with pytest.raises(Stopped):
            train(ODD, folder, execution=execution, on_event=once_at(15))
        together()
        (last,) = {*(folder / checkpoint.NAME).iterdir()} - {first}
        together()
        if RANK == 0:
            flipped(last / ("__1_0.distcp" if sharding == "fsdp2" else "__0_0.distcp"))
        together()
        train(
            ODD,
            folder,
            execution=execution,
            say=said.append,
            on_event=lambda t, event, steps=steps: steps.append(t.step),
        )
        assert steps[0] == 12
        together()
        assert not (folder / checkpoint.NAME).exists()
        assert (folder / checkpoint.DAMAGED / last.name / checkpoint.METADATA).exists()
        assert len(said) == (RANK == 0)
        assert all(line.endswith("training resumes at step 11") for line in said)


def flipped(path):
    """A bit of each tensor is wrong, behind the name of its record in the file."""
    data = bytearray(path.read_bytes())
    place = 0
    while (place := data.find(b"data/0FB", place) + 1) > 0:
        data[place + 100] ^= 1
    path.write_bytes(data)


def a_signal_to_one_rank_saves_and_ends_both(root):
    interruptible()
    for sharding, number in zip(SHARDINGS, (signal.SIGUSR1, signal.SIGINT), strict=True):
        folder, execution = root / f"signal-{sharding}", Execution(sharding=sharding)

        def signalled(training, event, number=number):
            if (training.step, event, RANK) == (7, "step", 1):
                os.kill(os.getpid(), number)

        with pytest.raises(SystemExit) as ended, handled():
            train(ODD, folder, execution=execution, on_event=signalled)
        assert ended.value.code == 128 + number
        together()
        (step,) = saved(folder)
        assert 8 <= step <= 7 + ASK_EVERY, step
        together()
        steps = []
        train(ODD, folder, execution=execution, on_event=lambda t, event, steps=steps: steps.append(t.step))
        assert steps[:1] == [step + 1][: ODD.steps - step]  # none where the last step heard it


def a_full_disk_of_one_rank_is_said_by_both(root):
    """While it writes beside training; the checkpoint before it is whole."""
    none = resource.getrlimit(resource.RLIMIT_FSIZE)
    for rank, sharding in enumerate(SHARDINGS):
        folder, execution = root / f"full-{sharding}", Execution(sharding=sharding)
        stopped_at(11, ODD, folder, execution)
        before = content(folder / checkpoint.NAME)

        def fill(training, event, full=rank == RANK):
            if (training.step, event) == (13, "step"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (500, none[1]) if full else none)
                training.save()
                training.await_save()

        with pytest.raises(UserError, match=r"cannot write to .*/checkpoint/step-000013-\w+ \(File too large\): free"):
            train(ODD, folder, execution=execution, on_event=fill)
        resource.setrlimit(resource.RLIMIT_FSIZE, none)
        together()
        assert content(folder / checkpoint.NAME) == before
        together()


def weights_saved_and_started_from(root):
    for sharding in SHARDINGS:
        file = root / f"{sharding}.safetensors"
        train(TIED, root / f"saved-{sharding}", execution=Execution(sharding=sharding, save_model=file))
        together()
        spec = replace(TIED, init=weights.hash_of(file))
        train(spec, root / f"from-{sharding}", execution=Execution(sharding=sharding, init_from=file))
    spec = RunSpec("small_tasks:Line", 15, 20, "adamw", ADAMW, init=weights.hash_of(file))
    with pytest.raises(UserError, match=r"does not fit the task's model: 0\.weight \("):
        train(spec, root / "misfit", execution=Execution(sharding=sharding, init_from=file))


def one_fills_a_cache_and_the_others_read_it(root):
    cache = root / "cache"

    def prepared():
        if cache.exists():
            return "read"
        time.sleep(0.3)
        cache.write_text("rows")
        return "written"

    assert agreement.in_turn(prepared) == ("written", "read")[RANK]

    def refused():
        assert RANK == 0, "nothing was prepared"
        raise UserError("no such rows")

    with pytest.raises(UserError, match=r"^no such rows \(process 0 of 2 on .+\)$"):
        agreement.in_turn(refused)


def raised_on_all(mine):
    with agreement.raise_on_all():
        if mine is not None:
            raise mine from KeyError("its cause")


def what_one_raises_all_raise_and_say_whose_it_is():
    """Unless it is the same on all; of several the first one's."""
    for mine, found in (
        ([None, UserError("b")], UserError("b (process 1 of 2 on {})")),
        ([UserError("a"), UserError("b")], UserError("a (process 0 of 2 on {})")),
        ([UserError("a"), UserError("a")], UserError("a")),
        ([None, Failed("refused", "b")], Failed("refused", "b (process 1 of 2 on {})")),
        ([None, TaskFault("t", "splits()")], TaskFault("t", "splits() (process 1 of 2 on {})")),
    ):
        with pytest.raises(type(found)) as caught:
            raised_on_all(mine[RANK])
        says = tuple(one.format(platform.node()) for one in found.args)
        if isinstance(found, TaskFault):
            assert caught.value.args[:2] == says[:2]
            shown = "".join(traceback.format_exception(caught.value.__cause__)) if RANK else caught.value.trace
            assert "KeyError: 'its cause'" in shown
        else:
            assert caught.value.args == says


def main(root):
    one_fills_a_cache_and_the_others_read_it(root)
    what_one_raises_all_raise_and_say_whose_it_is()
    without_a_shared_folder(root)
    asked_for_different_runs(root)
    refused_at_construction(root)
    parts_of_one(root)
    raised_before_the_first_new_step(root)
    half_a_checkpoint(root)
    a_signal_to_one_rank_saves_and_ends_both(root)
    a_full_disk_of_one_rank_is_said_by_both(root)
    weights_saved_and_started_from(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_process_group()
