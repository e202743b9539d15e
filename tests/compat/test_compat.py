"""The whole of it, in a process of its own where what is imported when matters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lavis_peft import compat

ROOT = Path(compat.__file__).resolve().parents[2]

ALONE = """
import sys, lavis_peft.hook
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "LavisHook"]
"""


def python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    # Without the plugin's own hook, which would go on to register names in LAVIS.
    return subprocess.run([sys.executable, "-c", ALONE + code], capture_output=True, text=True, env=environment)


def result(code: str, *paths: Path) -> object:
    process = python(code, *paths)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_every_patch_says_what_it_is_for() -> None:
    assert len({patch.name for patch in compat.PATCHES}) == len(compat.PATCHES)
    for patch in compat.PATCHES:
        assert patch.broke and patch.since, patch.name


IMPORT_LAVIS = """
import importlib.util, json, sys
from lavis_peft import compat
from lavis_peft.compat import standins
first = compat.apply()
import lavis.models.blip2_models.Qformer
second = compat.apply()
third = compat.apply()
print(json.dumps({
    "kept": first == second[:len(first)],
    "same": second == third,
    "finders": sum(type(finder).__name__ == "_LavisFinder" for finder in sys.meta_path),
    "fooled": [name for name in standins.served() if name in sys.modules or importlib.util.find_spec(name)],
}))
"""


def test_lavis_imports_and_nobody_else_notices() -> None:
    assert result(IMPORT_LAVIS) == {"kept": True, "same": True, "finders": 1, "fooled": []}


def test_lavis_warns_of_nothing_the_user_could_change() -> None:
    process = python("from lavis_peft import compat; compat.apply(); import lavis")
    assert process.returncode == 0, process.stderr
    assert [line for line in process.stderr.splitlines() if "timm.models" in line or "torch.cuda.amp" in line] == []


LATE = """
import json, sys
from lavis_peft import compat
compat.apply()
import lavis.models.blip2_models.Qformer as qformer
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "_LavisFinder"]
on_import = [patch.name for patch in compat.apply() if patch.after]
compat._applied[:] = [patch for patch in compat._applied if not patch.after]
late = [patch.name for patch in compat.apply() if patch.after]
print(json.dumps([on_import, late]))
"""


def test_a_lavis_that_is_there_already_is_patched_at_once() -> None:
    on_import, late = result(LATE)
    # The mask helpers look at transformers, the rest at what LAVIS lacks, so that all are wanted again.
    assert late == on_import


# A torchvision whose compiled part doesn't load does this while it is imported.
BROKEN_TORCHVISION = """
import torch
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
torch.library.register_fake("torchvision::qnms")(lambda dets, scores, iou_threshold: dets)
"""

TORCHVISION = """
import json
from lavis_peft.compat.torchvision import OPERATORS
needed = OPERATORS.needed()
if needed:
    OPERATORS.apply()
import torchvision
print(json.dumps([needed, OPERATORS.needed()]))
"""


def test_torchvision_without_its_operators_imports(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text(BROKEN_TORCHVISION)
    plain = python("import torchvision", tmp_path)
    assert "operator torchvision::nms does not exist" in plain.stderr
    assert result(TORCHVISION, tmp_path) == [True, False]


def test_a_sound_torchvision_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("sound = True\n")
    assert result(TORCHVISION, tmp_path) == [False, False]


def test_another_failure_of_torchvision_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('no space left')\n")
    assert "no space left" in python(TORCHVISION, tmp_path).stderr


def test_the_installed_torchvision_is_patched_only_if_it_needs_it() -> None:
    fails = python("import torchvision").returncode != 0
    code = "import json; from lavis_peft import compat; print(json.dumps([patch.name for patch in compat.apply()]))"
    assert ("torchvision.operators" in result(code)) == fails


TIMM = """
import json, warnings
warnings.resetwarnings()
from lavis_peft.compat import timm, torchvision
if torchvision.OPERATORS.needed():
    torchvision.OPERATORS.apply()
needed = timm.MOVED.needed()
if needed and {patch}:
    timm.MOVED.apply()
with warnings.catch_warnings(record=True) as caught:
    import timm.models.layers  # not the name `timm` above
print(json.dumps([needed, any("Importing from timm" in str(warning.message) for warning in caught)]))
"""


@pytest.mark.parametrize("patch", [True, False])
def test_timm_keeps_quiet_about_its_old_paths(patch: bool) -> None:
    needed, warned = result(TIMM.format(patch=patch))
    assert warned == (needed and not patch)


TORCH = """
import json, warnings
import torch
from lavis_peft.compat.torch import DEPRECATED
needed = DEPRECATED.needed()
with warnings.catch_warnings(record=True) as plain:
    warnings.simplefilter("always")
    torch.cuda.amp.autocast(enabled=False)
with warnings.catch_warnings(record=True) as patched:
    warnings.simplefilter("always")
    if needed:
        DEPRECATED.apply()
    torch.cuda.amp.autocast(enabled=False)
count = lambda caught: sum(issubclass(warning.category, FutureWarning) for warning in caught)
print(json.dumps([needed, count(plain), count(patched)]))
"""


def test_torch_keeps_quiet_about_its_old_names() -> None:
    needed, plain, patched = result(TORCH)
    assert (plain > 0) == needed
    assert patched == 0
