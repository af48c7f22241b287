"""What each of two processes does for test_paper_scale.py: every recipe at paper scale, shrunk, as shards."""

import sys
from pathlib import Path

import shrunk_recipes

from thalweg.lab.engine import leave_process_group
from thalweg.studies import run

if __name__ == "__main__":
    for name in shrunk_recipes.names():
        run.reproduce(shrunk_recipes.shrunk(name), "", "paper", Path(sys.argv[1]) / name)
    leave_process_group()
