"""What a run leaves on disk, and how it is read again: Python alone, so that reports need no torch.

What a comparison leaves on disk
--------------------------------

There is no database and no file that two processes change: a run belongs to a folder named by what decides it, so that
another batch size, other code or other data never meets it. ::

    OUT/runs/TASK/BATCH_SIZE/OPTIMIZER/STEPS-steps/          a cell: one optimizer in one table
        cell.json                                            the table, the search space, how much was asked for
        study-S/trial-N-HASH/                                a tuning run: study S, trial N, one for each tuning seed
        study-S/round-R-trial-N-HASH/                        one of a round that follows (see below)
        seed-N-HASH/                                         the chosen setting on fresh seed N
    OUT/runs/TASK/BATCH_SIZE/timing/STEPS-steps.json         seconds a step, all optimizers interleaved
    OUT/report.html, results.csv                             written again by ``thalweg report OUT``

(A ``:`` in a name is a ``.`` in its folder.) A run's folder holds, each written whole or not at all,

``spec.json``
    All that decides the run (:class:`~thalweg.lab.engine.spec.RunSpec`): ``format``, ``hash``, ``task``,
    ``batch_size``, ``steps``, ``optimizer``, ``settings``, ``seed``, ``test``, ``schedule``, ``warmup``, ``clip``,
    ``label_smoothing``, ``augment``, ``precision``, ``evaluations``, ``code`` and ``data`` (hashes of source and data),
    and ``init`` (hash of the weights) where it starts from a file.
``environment.json``
    Where it ran: interpreter, packages, processor, accelerators, host, number of processes and of threads, and the
    variables of the environment that libraries of numerics read (``variables``).
``metrics.jsonl``
    One line an evaluation: ``step``, ``examples``, ``seconds`` (of training, evaluation left out), ``loss`` (training,
    mean since the last line), ``validation`` (null where it is not finite), ``lr``; and as measured, which is never the
    same twice and which lines of before it was measured lack: ``examples_per_second`` (of training since the last line,
    of all processes), of language models also ``tokens_per_second`` and ``flops_per_second`` (six a token and parameter
    that it meets), and ``peak_memory`` (bytes, of the first process so far: of tensors on an accelerator, else RSS).
``instruments.jsonl``
    With ``thalweg train --instruments N``, one line every N steps: ``step`` and what :mod:`thalweg.landscape` saw of it
    (:meth:`~thalweg.landscape.Instruments.measure`), null where it is not finite or not available, and
    ``overhead_seconds``.
``checkpoint/``
    While it runs, of a long run: everything to resume from, in a folder for each of the last two checkpoints. Deleted
    at its end. One that cannot be read, or is another run's, is kept in ``checkpoint.damaged/`` or
    ``checkpoint.other/``.
``result.json``
    Written last; a run without it is not complete and is run again, from its checkpoint. ``status`` ("finished" or
    "failed"), ``failure`` (None, or "diverged", "non-finite metric", "refused", "out of memory" or "crashed"),
    ``reason`` (None or text),
    ``validation`` (at the end of the schedule), ``test`` and ``test_metrics`` (only of fresh seeds; the latter what
    the task's ``more`` says, by name), ``seconds``, ``steps_to_target`` and ``seconds_to_target`` (None: not reached).
``ticket-N``
    The worker that trains it, while one does (:mod:`thalweg.lab.search.tickets`).

``cell.json`` holds ``task``, ``title``, ``metric`` (its ``resolution`` that of the test set), ``batch_size``,
``steps``, ``budget`` ("short", "long" or "custom"), ``target``, ``train_examples``, ``optimizer``, ``space`` (name,
low, high, log of each axis), ``trials`` (a study), ``studies``, ``seeds``, ``code``, ``data``, ``left_out`` (None, or
why the optimizer does not apply) and ``command``, and of the search ``tuning_seeds``, ``judged`` ("last fifth") and
``rounds`` (of a study; 0 where its axes are lists); a cell without these is of before they were, with one tuning seed,
judged by its last evaluation. ``chance`` is the metric of the best constant prediction (None: unknown), ``looks`` how
often the fresh seeds were looked at: 1, and 1 more each time that all were trained and then more were asked for. Asked
again for more, it grows; it never shrinks, and a command that names fewer optimizers leaves the others' alone.

A study is ``trials`` points of a scrambled quasi-random sequence, a pure function of task, batch size, steps, optimizer
and the study's number. Two *rounds* of half as many trials follow, whatever these found: beyond an edge of the learning
rates tried where the best is at one, else its neighbours in learning rate and points near it. They are a function of
what came before, so that a larger search (more trials, more tuning seeds) has rounds of its own, named in ``place`` of
``spec.json``. A trial is trained from each tuning seed and judged by the mean over them of the mean validation metric
of the last fifth of the evaluations; if one failed, it failed. The chosen setting is the best of the study whose best
is the median; its fresh seeds alone see the test set.
"""
