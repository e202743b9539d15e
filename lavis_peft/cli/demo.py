"""`lavis-peft demo`: the main job on a real data set, in minutes on a CPU."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavis_peft.errors import ConfigError

if TYPE_CHECKING:
    from lavis_peft.demo import Demo

_DEFAULT = "lavis-peft-demo"
_ROWS = {
    "blind": "image-blind guesser",
    "before": "base, before tuning",
    "control": "control: queries, projection, ln_vision",
    "after": "Q-Former LoRA, after tuning",
    "merged": "the same, merged into the base",
    "shuffled": "the same, with shuffled pictures",
}


@click.command("demo")
@click.option("--output", metavar="DIR", help=f"Folder for everything; new or empty. Default: ./{_DEFAULT}.")
@click.option(
    "--quick", is_flag=True, help="A few hundred samples, one epoch: shows that all steps run, learns little."
)
@click.option("--llm", type=click.Choice(["t5", "vicuna"]), default="t5", show_default=True, help="Language model.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(output: str | None, quick: bool, llm: str, as_json: bool) -> None:
    """Tune a tiny InstructBLIP on easy-VQA and show what it gained.

    Trains a LoRA on the Q-Former through LAVIS's config, task and runner, with vision encoder and language model
    frozen; evaluates before and after on the whole test split, with shuffled pictures, and once more after merging. A
    control tunes only query tokens, projection and ln_vision. About five minutes on two cores.
    """
    from lavis_peft.demo import Demo

    folder = _folder(output)
    demo = Demo(folder=folder, llm=llm, quick=quick, say=lambda line: click.echo(line, err=True))
    click.echo(f"Everything goes to {folder}", err=True)
    with _status_line(demo):
        result = demo.run()
    (folder / "demo.json").write_text(json.dumps(result, indent=2) + "\n")
    click.echo(json.dumps(result, indent=2) if as_json else table(result))
    if result["merged_differs"]:
        click.echo(f"The merged model answers {result['merged_differs']} questions differently.", err=True)
        sys.exit(1)


def _folder(output: str | None) -> Path:
    # Looked for first: without the data set nothing below can work.
    from lavis_peft.datasets.easy_vqa import data_dir

    data_dir()
    folder = Path(output or _DEFAULT).expanduser().resolve()
    if output is None:
        for number in range(2, 1000):
            if not folder.exists():
                break
            folder = folder.with_name(f"{_DEFAULT}-{number}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output {folder}: exists already; give a new or empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder}: can't be made ({error.strerror})") from None
    return folder


@contextmanager
def _status_line(demo: "Demo") -> Iterator[None]:
    """Show on a terminal how far the runs are, once a second."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def show() -> None:
        while not done.wait(1.0):
            click.echo(f"\r\033[K{demo.progress()}\r", err=True, nl=False)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        click.echo("\r\033[K", err=True, nl=False)


def table(result: dict[str, Any]) -> str:
    """The demo's figures as a Markdown table."""
    kinds = [kind for kind in ("all", "yes_no", "color", "shape") if kind in result["by_type"]["after"]]
    names = {"all": "all questions", "yes_no": "yes/no", "color": "colour", "shape": "shape"}
    lines = [
        f"easy-VQA test, {result['questions']:,} questions, right answers in percent:",
        "",
        f"| {'':39} | " + " | ".join(f"{names[kind]:>13}" for kind in kinds) + " | trained parameters |",
        "| --- |" + " ---: |" * (len(kinds) + 1),
    ]
    trained = {"after": result["trainable"], "control": result["trainable_control"]}
    for name, title in _ROWS.items():
        cells = [f"{result['by_type'][name][kind]:13.2f}" for kind in kinds]
        number = f"{trained[name]:,}" if name in trained else ""
        lines.append(f"| {title:39} | " + " | ".join(cells) + f" | {number:>18} |")
    same = "to the question" if not result["merged_differs"] else f"but for {result['merged_differs']} questions"
    lines += ["", f"Merged equals unmerged {same}. {result['seconds']:.0f} s in all. Files: {result['output']}"]
    return "\n".join(lines)
