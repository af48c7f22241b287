"""The processes that tests on several ranks share: what one of them gets wrong is said, and ends them all."""

import os
import time

import pytest
import torch
from rank_pool import call_on_ranks, end_crowded, end_idle
from torch import distributed as dist


def pid_and_sum(rank):
    total = torch.tensor(rank)
    dist.all_reduce(total)
    return os.getpid(), dist.get_world_size(), int(total)


def wait_for_a_rank_that_is_not_coming(rank):
    if rank != 2:
        total = torch.tensor(rank)
        dist.all_reduce(total)
        dist.all_reduce(total)


def fail_on(rank, failing):
    if rank in failing:
        raise ValueError(f"what rank {rank} says")
    dist.barrier()


def end_on_rank_1(rank):
    if rank == 1:
        os._exit(3)


@pytest.mark.parametrize("size", [1, 4])
def test_the_ranks_are_the_same_processes_in_every_call(size):
    first, second = (call_on_ranks(size, pid_and_sum) for _ in range(2))
    assert first == second
    assert len({pid for pid, *_ in first}) == size
    assert [rest for _, *rest in first] == [[size, size * (size - 1) // 2]] * size


def test_a_rank_that_is_waited_for_in_vain_ends_the_call_with_the_stacks_of_all():
    before = call_on_ranks(3, pid_and_sum)
    start = time.monotonic()
    with pytest.raises(AssertionError) as raised:
        call_on_ranks(3, wait_for_a_rank_that_is_not_coming, seconds=1.0)
    assert time.monotonic() - start < 10.0
    text = str(raised.value)
    for rank in (0, 1):
        assert f"rank {rank}: no answer after 1 s" in text
    assert text.count("in wait_for_a_rank_that_is_not_coming") == 2
    after = call_on_ranks(3, pid_and_sum)
    assert not {pid for pid, *_ in before} & {pid for pid, *_ in after}


@pytest.mark.parametrize("failing", [[0, 2], [1]])
def test_errors_of_all_ranks_are_told_and_where_the_others_are(failing):
    with pytest.raises(AssertionError) as raised:
        call_on_ranks(3, fail_on, failing)
    for rank in range(3):
        assert (f"ValueError: what rank {rank} says" in str(raised.value)) == (rank in failing)
    assert str(raised.value).count("still running") == 3 - len(failing)


def test_a_rank_that_ends_is_named():
    with pytest.raises(AssertionError, match="rank 1: ended"):
        call_on_ranks(3, end_on_rank_1)
    assert len(call_on_ranks(3, pid_and_sum)) == 3


def test_what_cannot_be_found_there_is_an_error_like_any_other():
    def local(rank): ...

    with pytest.raises(AttributeError):
        call_on_ranks(1, local)
    assert call_on_ranks(1, pid_and_sum)[0][1:] == (1, 0)


def groups_of_all(rank, count):
    for _ in range(count):
        dist.new_group()
    return os.getpid()


def test_ranks_that_nobody_has_called_for_a_while_are_not_kept():
    few = call_on_ranks(1, groups_of_all, 0)
    end_idle(60.0)
    assert call_on_ranks(1, groups_of_all, 0) == few
    end_idle(0.0)
    assert call_on_ranks(1, groups_of_all, 0) != few


def test_ranks_with_many_process_groups_are_not_kept_beyond_their_module():
    few = call_on_ranks(1, groups_of_all, 2)
    end_crowded()
    assert call_on_ranks(1, groups_of_all, 30) == few
    end_crowded()
    assert call_on_ranks(1, groups_of_all, 0) != few
