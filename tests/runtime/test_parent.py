"""A child that was told to end with its parent does, also when that one is killed."""

import select
import subprocess
import sys

import pytest

CHILD = "import os, time; from edgekit.runtime._parent import end_with_parent; end_with_parent(os.getppid()); print('up', flush=True); time.sleep(600)"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_child_ends_with_a_parent_that_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    with parent, parent.stdout:
        assert parent.stdout.readline() == "up\n"
        parent.kill()
        readable, _, _ = select.select([parent.stdout], [], [], 30)
        assert readable, "the child still holds its end of the pipe"
        assert parent.stdout.read() == ""


def test_a_child_whose_parent_is_gone_ends_at_once():
    code = "import os; from edgekit.runtime._parent import end_with_parent; end_with_parent(os.getppid() + 1); print('went on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
