"""Errors that are for the user to correct."""


class UserError(Exception):
    """One line that says what is wrong and what to do; the command line prints it and exits with code 2."""

    def __init__(self, message: str = "") -> None:
        if message.startswith("Caught UserError in DataLoader worker"):  # by torch, with the traceback there
            message = message.rstrip().rpartition("UserError: ")[2]
        super().__init__(message)


class TaskFault(Exception):  # noqa: N818 (a fault is what it is)
    """The code of a task raised: nothing of an optimizer's, so that everything stops.

    Its cause is what was raised; of one in another process, ``trace`` is the traceback there.
    """

    def __init__(self, task: str, where: str, trace: str = "") -> None:
        super().__init__(task, where, trace)
        self.task, self.where, self.trace = task, where, trace

    def __str__(self) -> str:
        return f"the task {self.task!r} failed in {self.where}"
