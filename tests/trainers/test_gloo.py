"""How a process that is one of several ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


# A thread asks for Python's lock in the last moment, and nothing but the end's own pause lets it have it: Gloo's
# threads are in that place when they drop an exchange's tensors, and are what aborts the process.
SCRIPT = """
import sys
import threading
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from modeling_tsarank.trainers.even_batches import settle_gloo_at_exit

state = PartialState(cpu=True)
settle_gloo_at_exit()
values = list(range(1000)) if state.is_main_process else [None] * 1000
assert broadcast_object_list(values) == list(range(1000))
gate = threading.Lock()
gate.acquire()


def work():
    with gate:
        Path(sys.argv[1], str(state.process_index)).touch()


threading.Thread(target=work, daemon=True).start()
sys.setswitchinterval(1000)
gate.release()
"""


def test_threads_that_wait_for_python_get_it_before_the_end(tmp_path: Path) -> None:
    """Without it, a run is aborted now and then: "terminate called without an active exception"."""
    script, marks = tmp_path / "leave.py", tmp_path / "marks"
    script.write_text(SCRIPT)
    marks.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    command = [*launch, str(script), str(marks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(path.name for path in marks.iterdir()) == ["0", "1"]
