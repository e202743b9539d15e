"""The doctor on sound and on broken installations, each in a process of its own."""

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lavis_peft
from lavis_peft.cli import diagnosis
from lavis_peft.cli.doctor import describe

PACKAGES = Path(lavis_peft.__file__).resolve().parents[1]
ROOT = Path(__file__).resolve().parents[2]

# Makes modules disappear, installed or not.
WITHOUT = """
import sys
class Hide:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide)
"""


def doctor(*args: str, prelude: str = "", paths: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, PACKAGES)))}
    code = prelude + "\nfrom lavis_peft.cli import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", "import sys\n" + code, "doctor", *args], capture_output=True, text=True, env=environment
    )


def without(*names: str) -> tuple[int, dict[str, Any]]:
    process = doctor("--json", prelude=WITHOUT.format(names=names))
    assert process.stdout, process.stderr
    return process.returncode, json.loads(process.stdout)


def fatal(report: dict[str, Any]) -> dict[str, str]:
    return {problem["what"]: problem["remedy"] for problem in report["problems"] if problem["fatal"]}


def test_a_sound_installation() -> None:
    process = doctor("--json")
    report = json.loads(process.stdout)
    assert fatal(report) == {}
    assert (process.returncode, report["ok"]) == (0, True)
    assert report["lavis"]["line"] in ("1.0.2", "main")
    assert Path(report["lavis"]["location"], "__init__.py").is_file()
    assert report["versions"]["torch"] and report["versions"]["python"].startswith("3.")
    assert all(patch["broke"] and patch["since"] for patch in report["patches"])
    missing = {module for extra in report["extras"] for module in extra["absent"]}
    assert set(report["standins"]) & {"decord", "spacy", "pycocotools"} <= missing


def test_the_text_says_the_same() -> None:
    found = diagnosis.Diagnosis(
        plugin={"version": "0.1.0", "location": "/here/lavis_peft"},
        versions={"torch": "2.13.0", "timm": None},
        patches=[{"name": "timm.models", "broke": "four warnings", "since": "timm 0.9"}],
        standins={"spacy": "not installed", "decord": "not installed"},
        extras=[{"extra": "video", "absent": ["decord"], "brings": "films", "remedy": "pip install it"}],
        problems=[
            diagnosis.Problem(False, "no sentencepiece", "get it"),
            diagnosis.Problem(True, "no timm", "bring it"),
        ],
    )
    assert describe(found) == TEXT


TEXT = """\
lavis-peft  0.1.0  (/here/lavis_peft)
LAVIS       not installed
torch       2.13.0
timm        not installed
devices     CPU only

Patched, 1:
  timm.models
    four warnings
    since timm 0.9

Optional, not installed:
  pip install it  films (no decord)
LAVIS imports these, and got stand-ins that fail only when they are used:
  not installed: decord, spacy

Error: no timm
  bring it
Note: no sentencepiece
  get it

The plugin can't work until the errors are mended."""


def test_no_lavis() -> None:
    code, report = without("lavis")
    assert (code, report["ok"], report["lavis"]) == (1, False, None)
    assert fatal(report) == {"LAVIS isn't installed": "pip install --no-deps salesforce-lavis==1.0.2"}


def test_no_libraries_at_all() -> None:
    code, report = without(*diagnosis.LIBRARIES, "lavis")
    assert code == 1
    names = list(diagnosis.LIBRARIES.values())
    assert fatal(report)[f"not installed: {', '.join(names)}"] == f"pip install {' '.join(names)}"
    assert len(fatal(report)) == 2, "LAVIS and the libraries"


@pytest.mark.parametrize("library", ["peft", "transformers", "torch", "numpy"])
def test_a_library_that_fails_to_import(library: str, tmp_path: Path) -> None:
    (tmp_path / f"{library}.py").write_text("raise RuntimeError('built for another machine')\n")
    process = doctor("--json", paths=(tmp_path,))
    assert process.returncode == 1, process.stderr
    assert "built for another machine" in " ".join(fatal(json.loads(process.stdout)))


def test_a_library_that_exits(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("import sys\nsys.exit('no')\n")
    process = doctor("--json", paths=(tmp_path,))
    assert process.returncode == 1
    assert "SystemExit" in " ".join(fatal(json.loads(process.stdout)))


def checkout(folder: Path, *files: str) -> Path:
    for file in ("lavis/__init__.py", *files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def test_a_clone_of_lavis_main_hides_the_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout(tmp_path, "train.py", "lavis/models/blip2_models/blip2_t5_instruct.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lavis", raising=False)
    found = diagnosis.Diagnosis()
    diagnosis._lavis(found)
    assert found.lavis == {
        "distribution": None,
        "version": None,
        "location": str(tmp_path / "lavis"),
        "line": "main",
        "train_script": str(tmp_path / "train.py"),
    }


def test_a_transformers_without_llama_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_is_absent", lambda module: module == "transformers.models.llama")
    found = diagnosis.Diagnosis(versions={"transformers": "4.26.1"})
    diagnosis._vicuna(found)
    assert found.ok
    assert [problem.what for problem in found.problems] == [
        "transformers 4.26.1 has no LLaMA: FLAN-T5 models work, Vicuna models don't"
    ]


def test_a_peft_too_new_for_the_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", type("Old", (), {"__version__": "4.33.2"}))
    assert diagnosis._peft_remedy().startswith("pip install peft==0.13.2")


def test_the_extras_are_those_of_the_package() -> None:
    setup = configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    declared = dict(setup["options.extras_require"])
    for extra, (modules, _) in diagnosis.EXTRAS.items():
        required = declared[extra].replace("scikit-learn", "sklearn").split()
        assert [name.partition(">")[0].replace("-", "_") for name in required] == list(modules), extra


def test_the_libraries_are_those_of_the_package() -> None:
    setup = configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    required = {line.partition(">")[0].lower() for line in setup["options"]["install_requires"].split()}
    # What only some runs need is a note or an error of its own.
    assert required - set(diagnosis.LIBRARIES.values()) == {"click", "packaging", "protobuf", "sentencepiece"}
