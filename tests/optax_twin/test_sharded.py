"""Eight devices, simulated on the CPU in another process, run on_eight_devices.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_on_eight_devices():
    path = Path(__file__).with_name("on_eight_devices.py")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--noconftest", path]
    done = subprocess.run(
        command, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
