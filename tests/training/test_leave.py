"""Processes of a launcher end with their own status, after their exit handlers; others go on."""

import subprocess
import sys

SCRIPT = """
import atexit, sys
import torch.distributed as dist
from morphogen.training import leave

leave(5)  # no group: nothing happens
atexit.register(print, "handled")
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
leave(3)
print("not reached")
"""


def test_a_process_of_a_group_leaves_with_its_status(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "group")], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (3, "handled\n"), done.stderr
