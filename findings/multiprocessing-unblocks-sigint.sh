#!/usr/bin/env bash
# CPython 3.11's multiprocessing, "spawn" method on Linux: who blocks SIGINT so that a new process inherits the mask finds
# that the first process does not have it. Process.start() starts the resource tracker before that process, and
# resource_tracker.ensure_running() then unblocks SIGINT and SIGTERM in the caller, whatever its mask was. From the second
# process on the mask is inherited. Ctrl-C thus reaches one worker of a pool while it imports.
# Seen: "first: child blocked False, caller blocked False" and "second: child blocked True, caller blocked True".
# Fails if that changes. Nothing is installed: the standard library alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -c 'import sys; assert sys.version_info[:2] == (3, 11), f"seen with Python 3.11, this is {sys.version}"'
cat > "$folder/see.py" <<'PY'
import multiprocessing
import signal


def blocked():
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def tell(pipe):
    pipe.send(blocked())


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    for name in ("first", "second"):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=tell, args=(theirs,))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        child.start()
        print(f"{name}: child blocked {ours.recv()}, caller blocked {blocked()}")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        child.join()
PY
seen=$(python3 "$folder/see.py")
echo "$seen"
[ "$seen" = "first: child blocked False, caller blocked False
second: child blocked True, caller blocked True" ]
