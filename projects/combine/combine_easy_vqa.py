"""Two adapters trained on two halves of easy-VQA's question types, combined by every method.

Purpose: what each way of combining keeps of what either adapter learned.
Needs:   the extra `demo` (the easy-VQA set); a CPU is enough, eleven minutes on one core.
Command: python projects/combine/combine_easy_vqa.py --output output/combine
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
#: Each adapter sees one kind of yes/no questions, and one other kind.
HALVES = {"first": ("yes_no/plain", "shape"), "second": ("yes_no/negated", "color")}
VAL_PICTURES = 100


def write_data(folder: Path, quick: bool) -> None:
    """The questions of each half, of both, and those held out, as files of `instruct_json`."""
    from lavis_peft.datasets.easy_vqa import data_dir, read_split
    from lavis_peft.datasets.selection import carve, subset

    train, val = carve(read_split(data_dir(), "train"), VAL_PICTURES, 42, "val")
    test = read_split(data_dir(), "test")
    if quick:
        train, val, test = subset(train, 1500, 42), subset(val, 100, 42), subset(test, 200, 42)
    files = {name: [r for r in train if r.question_type in kinds] for name, kinds in HALVES.items()}
    for name, records in {**files, "both": train, "val": val, "test": test}.items():
        rows = [
            {
                "image": record.image,
                "question": record.question,
                "answer": record.answers[0],
                "choices": list(record.choices),
                "question_type": record.question_type,
                "question_id": record.question_id,
            }
            for record in records
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))


def write_config(folder: Path, name: str, split: str, quick: bool) -> Path:
    """The demo's run config on one of the files, validating on another."""
    config = yaml.safe_load((HERE.parent / "demo" / "easy_vqa_t5.yaml").read_text())
    files = {"train": name, "val": split}
    config["datasets"] = {
        "instruct_json": {
            "build_info": {"annotations": {key: {"storage": str(folder / f"{f}.json")} for key, f in files.items()}},
            "cache_images": True,
            "vis_processor": config["datasets"]["easy_vqa"]["vis_processor"],
        }
    }
    config["run"] |= {"output_dir": str(folder / "runs" / name), "valid_splits": ["val"], "test_splits": []}
    if quick:
        config["run"] |= {"warmup_steps": 2, "batch_size_train": 64}
    path = folder / f"{name}_{split}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def command(log: Path, *arguments: object) -> dict:
    """The result of a `lavis-peft` command in a process of its own, what it says going to a log."""
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    line = [sys.executable, "-m", "lavis_peft.cli", *map(str, arguments), "--json"]
    with log.open("a") as file:
        done = subprocess.run(
            line, stdout=subprocess.PIPE, stderr=file, text=True, check=True, env={**os.environ, **threads}
        )
    return json.loads(done.stdout)


def trained(folder: Path, name: str, quick: bool) -> Path:
    """Train on one of the files; returns the checkpoint."""
    config = write_config(folder, name, "val", quick)
    run = command(folder / "log.txt", "train", "--cfg-path", config)["output_dir"]
    return Path(run) / "checkpoint_best.pth"


def scored(config: Path, output: Path, checkpoints: list[Path], method: str) -> dict:
    """What `lavis-peft combine` says of checkpoints and their combinations."""
    arguments = ["--method", method, "--evaluate", config, "--output", output]
    return command(output.with_name("log.txt"), "combine", *checkpoints, *arguments)


def main() -> None:
    """Train, combine by every method, score on held-out questions and on the test split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="output/combine", help="folder for everything; new or empty")
    parser.add_argument("--quick", action="store_true", help="a few questions: shows that all steps run")
    given = parser.parse_args()
    folder = Path(given.output).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder, given.quick)
    checkpoints = {name: trained(folder, name, given.quick) for name in (*HALVES, "both")}
    results = {}
    for split in ("val", "test"):
        config = write_config(folder, "both", split, given.quick)
        results[split] = scored(config, folder / f"by_{split}.pth", [checkpoints[name] for name in HALVES], "all")
        # One adapter and itself, for the score of the one that was trained on everything.
        whole = scored(config, folder / f"whole_{split}.pth", [checkpoints["both"]] * 2, "svd")["candidates"][0]
        results[split]["candidates"].append({**whole, "name": "trained on both halves"})
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    sys.stdout.write(table(results) + "\n")


def table(results: dict) -> str:
    """The scores as Markdown: held out, and by question type on the test split."""
    kinds = ["yes_no/plain", "shape", "yes_no/negated", "color"]
    lines = [
        "| | rank | held out | test | " + " | ".join(kinds) + " |",
        "| --- |" + " ---: |" * (3 + len(kinds)),
    ]
    names = ["first half alone", "second half alone"]
    names += [row["name"] for row in results["test"]["candidates"][2:]]
    best = results["val"]["method"]
    for name, held_out, row in zip(names, results["val"]["candidates"], results["test"]["candidates"], strict=True):
        by_type = row["metrics"]["accuracy_by_type"]
        numbers = [held_out["score"], row["score"], *(by_type[kind] for kind in kinds)]
        shown = f"**{name}**" if name == best else name
        lines.append(f"| {shown} | {row['ranks'][1]} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
