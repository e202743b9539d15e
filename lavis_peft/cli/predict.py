"""`lavis-peft predict`: answers to questions about pictures."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from lavis_peft.cli.run_options import RunCommand
from lavis_peft.errors import ConfigError


@click.command("predict", cls=RunCommand)
@click.argument("images", nargs=-1, metavar="[IMAGE ...]")
@click.option("--prompt", help="What the model reads with each IMAGE, as it is.")
@click.option("--questions", metavar="JSONL", help="A file of questions instead: image, question or prompt, choices, …")
@click.option("--images-dir", metavar="DIR", help="What image paths in the questions count from. Default: their file.")
@click.option(
    "--cfg-path", metavar="YAML", help="The run config; run.yaml of a merged model, or of an exported adapter."
)
@click.option("--checkpoint", metavar="PTH", help="A checkpoint of that run.")
@click.option("--adapter", metavar="DIR", help="A folder of `lavis-peft export`, or of peft's, instead.")
@click.option("--options", multiple=True, metavar="KEY=VALUE ...", help="Override settings of the run config.")
@click.option("--choices", metavar="A,B,...", help="Answers to choose from; ranked by likelihood, not generated.")
@click.option("--num-beams", type=click.IntRange(1), help="Beams of a generated answer. Default: as the run evaluates.")
@click.option(
    "--max-len", type=click.IntRange(1), help="Longest generated answer, tokens. Default: as the run evaluates."
)
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Questions at once.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--output", metavar="FILE", help="File to write, not there yet: text if it ends in .txt, else JSONL.")
@click.option(
    "--on-bad-image",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="A picture that can't be read: stop, or name it and go on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSONL, one object a question, instead of text.")
def command(images: tuple[str, ...], as_json: bool, output: str | None, **given: Any) -> None:
    """Answer questions about pictures with a tuned or merged model.

    IMAGE is a file, a folder, an http(s) address or a pattern. With --prompt, each is asked the same, word for word.
    --questions names a JSON or JSONL file whose records have `image`, and `question`, which is put into the run
    config's prompt, or `prompt`, which is read as it is; `choices`, `context` and `question_id` if need be.

    The text is the answer alone for one picture, else a line of picture (or question_id) and answer. JSONL has prompt,
    prediction and, with choices, the scores: negative log-likelihoods, lower is likelier.
    """
    target = _target(output)
    rows = predict(list(images), **given)
    texts = [json.dumps(row, ensure_ascii=False) for row in rows] if as_json or _is_jsonl(target) else lines(rows)
    if target is None:
        for text in texts:
            click.echo(text)
        return
    from lavis_peft.adapters.checkpoint import atomic_file

    with atomic_file(target) as file:
        file.write("".join(f"{text}\n" for text in texts).encode())
    click.echo(f"{len(rows)} answers: {target}", err=True)


def predict(
    images: Sequence[str],
    prompt: str | None = None,
    questions: str | None = None,
    images_dir: str | None = None,
    cfg_path: str | None = None,
    checkpoint: str | None = None,
    adapter: str | None = None,
    options: Sequence[str] = (),
    choices: str | None = None,
    num_beams: int | None = None,
    max_len: int | None = None,
    batch_size: int = 16,
    device: str = "auto",
    on_bad_image: str = "error",
) -> list[dict[str, Any]]:
    """Answer questions about pictures.

    Args:
        images: Files, folders, patterns and addresses, for ``prompt``.
        prompt: What the model reads with each of them.
        questions: A JSON or JSONL file of questions instead.
        images_dir: What image paths in it count from; None for its folder.
        cfg_path: The run config; None takes the one in the adapter's folder.
        checkpoint: A checkpoint of that run.
        adapter: A folder of ``lavis-peft export`` or of peft's.
        options: Overrides of the config.
        choices: Answers to choose from, separated by commas.
        num_beams: Beams of a generated answer; None for as many as the run evaluates with.
        max_len: Longest generated answer, tokens; likewise.
        batch_size: Questions at once.
        device: Where to run.
        on_bad_image: ``error`` or ``skip``.

    Returns:
        A row for each question, as `predict.asking.answers` gives them.

    Raises:
        ConfigError: Bad arguments or config.
        CheckpointError: Weights that can't be read or belong to another model.
        DataError: Questions or pictures that can't be used.
    """
    listed, problems = _choices(choices)
    problems += _argument_problems(images, prompt, questions, images_dir)
    source_config, more = _config_path(cfg_path, checkpoint, adapter)
    problems += more
    if problems:
        raise ConfigError(problems)
    from lavis_peft.predict.pictures import find_pictures

    found = find_pictures(images) if questions is None else []
    import lavis_peft

    lavis_peft.register()
    from tqdm import tqdm

    from lavis_peft.predict.asking import answers
    from lavis_peft.predict.loading import open_source
    from lavis_peft.predict.questions import from_file, from_prompt

    chosen = {"num_beams": num_beams, "max_len": max_len}
    generation = {key: value for key, value in chosen.items() if value is not None}
    source = open_source(source_config, list(options), checkpoint, adapter, device, generation)
    if questions is not None:
        folder = None if images_dir is None else str(Path(images_dir).expanduser())
        asked = from_file(Path(questions).expanduser(), source.style, listed, folder)
    else:
        asked = from_prompt(found, str(prompt), listed)

    def name_it(error: Exception) -> None:
        click.echo(f"skipped: {error}", err=True)

    skip = name_it if on_bad_image == "skip" else None
    stream = answers(source.model(), source.processor, asked, source.write, batch_size, skip)
    return list(tqdm(stream, total=len(asked), desc="predicting", unit="question", disable=None, file=sys.stderr))


def _choices(text: str | None) -> tuple[tuple[str, ...], list[str]]:
    if text is None:
        return (), []
    listed = tuple(word.strip() for word in text.split(","))
    if len(set(listed)) < max(len(listed), 2) or not all(listed):
        return (), [f"--choices {text!r}: give two or more different answers, separated by commas"]
    return listed, []


def _argument_problems(
    images: Sequence[str], prompt: str | None, questions: str | None, images_dir: str | None
) -> list[str]:
    problems = []
    if (prompt is None) == (questions is None):
        problems.append("give --prompt TEXT with pictures, or --questions FILE" + (", not both" if prompt else ""))
    if questions is not None and images:
        problems.append("--questions: its records name the pictures; give no others")
    if prompt is not None and not images:
        problems.append("--prompt: give one or more pictures to ask about")
    if images_dir is not None and questions is None:
        problems.append("--images-dir: is for --questions")
    elif images_dir is not None and not Path(images_dir).expanduser().is_dir():
        problems.append(f"--images-dir {images_dir}: no such folder")
    return problems


def _config_path(cfg_path: str | None, checkpoint: str | None, adapter: str | None) -> tuple[str, list[str]]:
    """The run config, and what is wrong with the arguments that say which model is asked."""
    problems = []
    if checkpoint is not None and adapter is not None:
        problems.append("--checkpoint and --adapter are both given; give one")
    folder = None if adapter is None else Path(adapter).expanduser()
    if folder is not None and not folder.is_dir():
        problems.append(f"--adapter {adapter}: no such folder")
    elif cfg_path is None and (folder is None or not (folder / "run.yaml").is_file()):
        problems.append("--cfg-path: missing; only a folder of `lavis-peft export` has a run config (run.yaml) in it")
    return cfg_path or str(Path(folder or "") / "run.yaml"), problems


def _target(output: str | None) -> Path | None:
    if output is None:
        return None
    target = Path(output).expanduser()
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: give a file in a folder that exists")
    if target.exists():
        raise ConfigError(f"--output {output}: exists already; give a new name")
    return target


def _is_jsonl(target: Path | None) -> bool:
    return target is not None and target.suffix != ".txt"


def lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The answers as text: one alone, or each after its picture or its question's name.

    Args:
        rows: What `predict` returned.
    """
    rows = list(rows)
    answered = [row for row in rows if "prediction" in row]
    if len(rows) == len(answered) == 1:
        return [answered[0]["prediction"]]
    asked_alike = len({row["prompt"] for row in answered}) == 1
    return [f"{row['image' if asked_alike else 'question_id']}\t{row['prediction']}" for row in answered]
