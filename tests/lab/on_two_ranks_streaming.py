"""What each of two processes does for test_streaming.py: trains on a stream, and goes on from where it was stopped."""

import shutil
import sys
from pathlib import Path

import pytest
from test_streaming import SPEC, batches_of, stop_at

from thalweg.lab.engine import Execution, Stopped, leave_process_group, train
from thalweg.lab.ranks import agreement

SHARDED = Execution(sharding="fsdp2")

if __name__ == "__main__":
    root, whole, parts = Path(sys.argv[1]), [], []
    with pytest.MonkeyPatch.context() as patch:
        batches_of(patch, whole)
        train(SPEC, root / "whole", execution=SHARDED)
        batches_of(patch, parts)
        with pytest.raises(Stopped):
            train(SPEC, root / "stopped", execution=SHARDED, on_event=stop_at(5))
        if agreement.processes().is_main_process:
            shutil.copytree(root / "stopped", root / "left")
        agreement.gather(None)
        train(SPEC, root / "stopped", execution=SHARDED)
    assert parts == whole
    one, other = ({row for batch in share[:2] for row in batch} for share in agreement.gather(whole))
    assert len(one) == len(other) == 8
    assert not one & other
    leave_process_group()
