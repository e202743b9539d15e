"""What `lavis-peft doctor` finds out. Nothing in here may fail, however broken the installation is."""

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lavis_peft import __version__, paths
from lavis_peft.cli.libraries import EXTRAS, LIBRARIES

INSTALL_LAVIS = "pip install --no-deps salesforce-lavis==1.0.2"


@dataclass(frozen=True)
class Problem:
    """Something wrong, and what to do about it.

    Args:
        fatal: The plugin can't work until it is mended.
        what: One sentence.
        remedy: A command, or what to do.
    """

    fatal: bool
    what: str
    remedy: str


@dataclass
class Diagnosis:
    """What was found; every field has a plain JSON form."""

    plugin: dict[str, str] = field(default_factory=dict)
    lavis: dict[str, str | None] | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    patches: list[dict[str, str]] = field(default_factory=list)
    standins: dict[str, str] = field(default_factory=dict)
    extras: list[dict[str, Any]] = field(default_factory=list)
    autoload: bool | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the plugin can work."""
        return not any(problem.fatal for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """The whole as plain containers, for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def report(self, what: str, remedy: str, fatal: bool = True) -> None:
        """Add a problem."""
        self.problems.append(Problem(fatal, what, remedy))


def diagnose() -> Diagnosis:
    """Look at what is installed, then at what happens when it is imported."""
    found = Diagnosis(plugin={"version": __version__, "location": str(Path(paths.__file__).parent)})
    # In this order: a later step imports what an earlier one has found to be there.
    for step in (_versions, _lavis, _extras, _plugin, _load, _devices, _vicuna):
        try:
            step(found)
        except (
            Exception,
            SystemExit,
        ) as error:  # a broken library does anything; the report must come out all the same
            found.report(f"the check {step.__name__.strip('_')} failed: {one_line(error)}", _where(error))
    return found


def guarded(probe: Callable[[], Any]) -> Any:
    """What `probe` returns, or None if it raises."""
    try:
        return probe()
    except Exception:
        return None


def one_line(error: BaseException) -> str:
    """An error's type and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"it comes from {frames[-1].filename}, line {frames[-1].lineno}" if frames else "no more is known"


def _is_absent(module: str) -> bool:
    return module not in sys.modules and guarded(lambda: importlib.util.find_spec(module)) is None


def _version(distribution: str) -> str | None:
    # The two OpenCVs hold the same module.
    for name in (distribution, distribution.removesuffix("-headless")):
        if version := guarded(lambda name=name: importlib.metadata.version(name)):  # type: ignore[misc]
            return version
    return None


def _versions(found: Diagnosis) -> None:
    found.versions["python"] = platform.python_version()
    for distribution in LIBRARIES.values():
        found.versions[distribution] = _version(distribution)
    if absent := [distribution for module, distribution in LIBRARIES.items() if _is_absent(module)]:
        found.report(f"not installed: {', '.join(absent)}", f"pip install {' '.join(absent)}")


def _lavis(found: Diagnosis) -> None:
    spec = guarded(lambda: importlib.util.find_spec("lavis"))
    if spec is None or not spec.submodule_search_locations:
        found.report("LAVIS isn't installed", INSTALL_LAVIS)
        return
    location = Path(next(iter(spec.submodule_search_locations)))
    script = location.parent / "train.py"
    found.lavis = {
        **_distribution(location),
        "location": str(location),
        # Version numbers don't tell: main calls itself 1.0.1, its copy on PyPI 1.0.2.3.
        "line": "main" if (location / "models/blip2_models/blip2_t5_instruct.py").is_file() else "1.0.2",
        "train_script": str(script) if script.is_file() else None,
    }


def _distribution(location: Path) -> dict[str, str | None]:
    for name in ("salesforce-lavis", "ammico-lavis"):
        distribution = guarded(lambda name=name: importlib.metadata.distribution(name))  # type: ignore[misc]
        # A clone on PYTHONPATH hides an installed LAVIS, whose name would then be wrong here.
        if distribution and Path(str(distribution.locate_file("lavis"))).resolve() == location.resolve():
            return {"distribution": name, "version": distribution.version}
    return {"distribution": None, "version": None}


def _extras(found: Diagnosis) -> None:
    for extra, (modules, brings) in EXTRAS.items():
        if absent := [module for module in modules if _is_absent(module)]:
            remedy = f'pip install "lavis-peft[{extra}]"'
            found.extras.append({"extra": extra, "absent": absent, "brings": brings, "remedy": remedy})


def _plugin(found: Diagnosis) -> None:
    for folder in (paths.plugin_configs_dir(), paths.projects_dir(), paths.tiny_dir()):
        if not folder.is_dir():
            found.report(
                f"the plugin's folder {folder} is missing", "pip install --force-reinstall --no-deps lavis-peft"
            )
    autoload = importlib.import_module("lavis_peft.cli.autoload")
    found.autoload = autoload.is_enabled(autoload.site_packages())


def _load(found: Diagnosis) -> None:
    if not found.ok:
        return
    from lavis_peft import compat
    from lavis_peft.compat import standins

    try:
        compat.apply()
        importlib.import_module("peft")
    except Exception as error:
        found.report(f"peft {found.versions['peft']} can't be imported: {one_line(error)}", _peft_remedy())
        return
    try:
        importlib.import_module("lavis_peft").register()
    except Exception as error:
        found.report(f"LAVIS with the plugin can't be imported: {one_line(error)}", _import_remedy(error))
    finally:
        found.patches = [{"name": patch.name, "broke": patch.broke, "since": patch.since} for patch in compat.apply()]
        found.standins = standins.served()


def _peft_remedy() -> str:
    transformers = guarded(lambda: importlib.import_module("transformers"))
    if transformers is not None and not hasattr(transformers, "Cache"):
        return f"pip install peft==0.13.2, the last that works with transformers {transformers.__version__}"
    return "pip install --upgrade peft transformers"


def _import_remedy(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        return f"pip install {LIBRARIES.get(top, top)}"
    return _where(error)


def _devices(found: Diagnosis) -> None:
    if _is_absent("torch"):
        return
    torch = importlib.import_module("torch")
    found.devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not found.devices and shutil.which("nvidia-smi"):
        found.report(
            f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU",
            "install a torch built for CUDA, of a CUDA version that the driver knows (nvidia-smi shows it)",
            fatal=False,
        )


def _vicuna(found: Diagnosis) -> None:
    if _is_absent("transformers"):
        return
    # Not by the class: importing one drags in torchvision, which may be what is broken.
    if _is_absent("transformers.models.llama"):
        found.report(
            f"transformers {found.versions['transformers']} has no LLaMA: FLAN-T5 models work, Vicuna models don't",
            "pip install --upgrade transformers peft timm",
            fatal=False,
        )
    elif _is_absent("sentencepiece"):
        found.report(
            "sentencepiece isn't installed: a Vicuna folder without tokenizer.json can't be read",
            "pip install sentencepiece protobuf",
            fatal=False,
        )
