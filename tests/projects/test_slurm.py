"""projects/processes/slurm.sh, with stand-ins for Slurm's commands and for lavis-peft."""

import os
import subprocess
from pathlib import Path

import pytest

from lavis_peft.paths import projects_dir

STAND_INS = {
    "srun": 'echo "srun $*" >> said.txt; shift; exec "$@"',
    "scontrol": '[ "$1" = show ] && printf "first\\nsecond\\n" || echo "scontrol $*" >> said.txt',
    "lavis-peft": 'echo "lavis-peft $*; $MASTER_ADDR:$MASTER_PORT" >> said.txt; exit "$CODE"',
}


@pytest.mark.parametrize(("code", "requeues"), [(0, False), (75, True), (1, False), (2, False)])
def test_only_a_saved_run_is_put_back_in_the_queue(code: int, requeues: bool, tmp_path: Path) -> None:
    for name, text in STAND_INS.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "CODE": str(code),
    }
    script = projects_dir() / "processes" / "slurm.sh"
    done = subprocess.run(["bash", str(script), "my run.yaml"], cwd=tmp_path, env=env, check=False)
    assert done.returncode == code
    train = "train --cfg-path my run.yaml --resume --options run.output_dir=output/123456"
    assert (tmp_path / "said.txt").read_text().splitlines() == [
        f"srun --kill-on-bad-exit=1 lavis-peft {train}",
        f"lavis-peft {train}; first:23456",
        *(["scontrol requeue 123456"] if requeues else []),
    ]
