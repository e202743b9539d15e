"""Trains the tiny InstructBLIP base on pictures and instructions that it draws and writes itself.

    python projects/tiny_base/train.py --output DIR [--config projects/tiny_base/config.yaml]

Stages whose files are in DIR already are skipped, so that an interrupted run goes on where it stopped.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run(settings_file: Path, output: Path, log_file: Path) -> None:
    """Run the stages that aren't done yet.

    Args:
        settings_file: The YAML of `settings.Settings`.
        output: Folder for the weights, tokenizers and configs; made where it is missing.
        log_file: Gets one JSON object a line.
    """
    import stages
    import vocabulary
    from instruct import make_pools, qformer_sizes, train_language
    from settings import Settings

    settings = Settings.read(settings_file)
    output.mkdir(parents=True, exist_ok=True)
    log = stages.Log(log_file)
    tokens = vocabulary.write_bert(output / "bert")
    bert = {"model_type": "bert", **qformer_sizes(settings), "vocab_size": tokens + 1}  # with LAVIS's [DEC]
    (output / "bert" / "config.json").write_text(json.dumps(bert, indent=1) + "\n")
    vocabulary.write_t5(output / "t5")
    vocabulary.write_llama(output / "llama")

    if not (output / "vit.safetensors").exists():
        stages.train_vision(settings, output, log)
    pools = None
    for family in ("t5", "llama"):
        if not (output / f"{family}_qformer.safetensors").exists():
            pools = pools or make_pools(settings, output)
            train_language(settings, output, family, pools, log)


def main(arguments: list[str] | None = None, start: Callable[[Path, Path, Path], None] = run) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, tokenizers and configs")
    parser.add_argument("--config", type=Path, default=HERE / "config.yaml", help="settings (default: %(default)s)")
    parser.add_argument("--log", type=Path, help="JSON lines (default: log.jsonl in the output folder)")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(HERE))
    from lavis_peft.errors import UserError

    try:
        start(options.config, options.output, options.log or options.output / "log.jsonl")
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
