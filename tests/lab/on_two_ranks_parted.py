"""What each of two processes does for test_going_on_together.py, where one of them ends alone."""

import os
import platform
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lines import SGD, kept
from test_going_on_together import ODD

from thalweg.lab.engine import Execution, leave_process_group, run, train
from thalweg.lab.ranks import notices
from thalweg.records.errors import TaskFault, UserError

RANK = int(os.environ["RANK"])
TRACKED = Execution(trackers=("tensorboard",))
WHERE = f"(process 1 of 2 on {platform.node()})"


def refusing(lr):
    return replace(ODD, optimizer="small_optimizers.RefusesAtTheThirdStep", settings={**SGD, "lr": lr})


def refused(root):
    result = train(refusing(0.11), root / "both")
    assert result["reason"] == "ValueError: no further"
    assert train(ODD, root / "whole", execution=TRACKED)["status"] == "finished"  # still together
    result = train(refusing(0.1), root / "one")
    assert (result["failure"], result["reason"]) == ("refused", f"ValueError: no further {WHERE}")
    with pytest.raises(UserError, match="were parted by an error of one: start the same command again"):
        train(ODD, root / "next")


def fault(root):
    with pytest.raises(TaskFault) as caught:
        train(replace(ODD, task="small_tasks:FailsOnTheSecondProcess"), root / "one")
    assert str(caught.value).endswith(f"failed in its model, loss or data {WHERE}")
    here = "".join(traceback.format_exception(caught.value.__cause__)) if RANK else caught.value.trace
    assert "KeyError: 'a row of this process'" in here


def killed(root):
    def on_event(training, event):
        if (training.step, event) == (3, "step"):
            training.save()
            training.await_save()
        if (training.step, RANK) == (4, 1):
            os._exit(0)  # as kill -9: nothing of Python's ends

    with pytest.raises(UserError, match=rf"^process 1 of 2 on {platform.node()} has ended or cannot be reached"):
        train(ODD, root / "one", on_event=on_event)


def begun(root):
    """Where trackers are ended on the way out as well."""
    if RANK:
        run._Writer.begin = lambda writer: os._exit(0)
    with pytest.raises(UserError, match=r"^another process of this run has ended or cannot be reached"):
        train(ODD, root / "one", execution=TRACKED)


def resumed(root):
    steps = []
    train(ODD, root / "one", on_event=lambda training, event: steps.append(training.step))
    assert steps[0] == 4
    train(ODD, root / "whole")
    torch.distributed.barrier()
    assert kept(root / "one") == kept(root / "whole")


if __name__ == "__main__":
    notices.GRACE = 2.0
    globals()[sys.argv[1]](Path(sys.argv[2]))
    leave_process_group()
