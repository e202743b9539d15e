"""`lavis-peft combine`: several trained adapters as one, chosen by a held-out score."""

import json
from collections.abc import Sequence
from typing import Any

import click

from lavis_peft.checks import listing, suggestion
from lavis_peft.cli.output import check_checkpoint_name
from lavis_peft.cli.run_options import RunCommand
from lavis_peft.errors import ConfigError


@click.command("combine", cls=RunCommand)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT CHECKPOINT ...")
@click.option("--method", "methods", multiple=True, required=True, help="See above; may be given several times.")
@click.option("--output", required=True, metavar="PTH", help="Checkpoint to write; must not exist yet.")
@click.option(
    "--weights", metavar="W,W,...", help="How much of each, as in a weighted sum, e.g. 0.7,0.3. Default: their mean."
)
@click.option("--rank", type=int, help="Rank of the result, where the method can choose it. Default: the highest.")
@click.option("--density", type=float, help="Fraction of values that pruning keeps. Default: 0.5.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is random in DARE and LoRA-LEGO.")
@click.option("--evaluate", metavar="YAML", help="Score each candidate on this run config's valid split.")
@click.option("--cfg-path", metavar="YAML", help="A run config of the model. Default: the one in the first checkpoint.")
@click.option("--options", multiple=True, metavar="KEY=VALUE ...", help="Override settings of these run configs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(checkpoints: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Make one adapter of several that were trained on the same model.

    The checkpoints' adapters are LORA (rsLoRA too) or ADALORA; ranks, scales and sub-layers may differ. The result is a
    checkpoint with an ordinary LORA adapter for evaluate, merge, export and model.finetuned; a run config that uses it
    is written beside it. What trained besides the adapters becomes the weighted mean.

    \b
    --method is one or several of these, or all:
      cat                  the exact weighted sum; its rank is the sum of the ranks
      svd                  the nearest to that of the highest rank, or of --rank
      linear               weighted sum of the two factors; rough
      lego                 LoRA-LEGO: the centres of the ranks' clusters
      magnitude_prune      smallest values of the factors dropped, then linear
      ties                 TIES on the factors
      dare_linear          DARE on the factors
      dare_ties            DARE and TIES on the factors
      NAME_svd             the last four on the whole updates, then as svd

    With --evaluate, each candidate and each adapter alone is scored on questions that are held out, and the best
    candidate is written; several methods need it.
    """
    result = combine(list(checkpoints), **given)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    if "split" in result:
        click.echo(table(result))
        if result["is_test"]:
            click.echo(f"No valid split there: {result['split']} is a split that the config is tested on.", err=True)
    click.echo(f"{result['method']}: {result['parameters']:,} parameters, {_ranks(result['ranks'])}")
    for path in result["files"]:
        click.echo(f"  {path}")


def combine(
    checkpoints: Sequence[str],
    methods: Sequence[str],
    output: str,
    weights: str | None = None,
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    evaluate: str | None = None,
    cfg_path: str | None = None,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Combine adapters and write the result, or the best of several.

    Args:
        checkpoints: Runs' checkpoints, paths or addresses.
        methods: Names of `combine.methods.METHODS`, or ``all``.
        output: The checkpoint to write; a YAML of the same name goes beside it.
        weights: One number for each checkpoint, separated by commas; None for their mean.
        rank: Of the result, where the method can choose it; None for the highest of theirs.
        density: Fraction of values that pruning keeps; None for half of them.
        seed: Of what is random.
        evaluate: A run config on whose held-out split candidates are scored.
        cfg_path: A run config of the model; None takes ``evaluate``'s, or the one in the first checkpoint.
        options: Overrides of these configs.

    Returns:
        ``files``, ``method``, ``ranks``, ``parameters``, and with ``evaluate`` ``split``, ``questions`` and
        ``candidates``: a name and the metrics of each.

    Raises:
        ConfigError: With everything that is wrong with the arguments, the configs or the checkpoints.
        CheckpointError: A checkpoint doesn't fit its model.
    """
    shares, problems = _shares(weights, len(checkpoints))
    chosen, more = _methods(methods, evaluate)
    problems += more + _number_problems(rank, density, chosen if "all" not in methods else [])
    try:
        target = check_checkpoint_name(output)
    except ConfigError as error:
        problems += error.problems
    if len(checkpoints) < 2:
        problems.append(f"{checkpoints[0]}: one checkpoint alone; give two or more to combine")
    if problems:
        raise ConfigError(problems)

    import lavis_peft

    lavis_peft.register()
    from lavis_peft.combine.candidate import Settings
    from lavis_peft.combine.job import Job
    from lavis_peft.runners.held_out import HeldOut

    job = Job.of(checkpoints, cfg_path, evaluate, list(options))
    held_out = HeldOut(evaluate, list(options)) if evaluate else None  # what is wrong with it is said before the work
    made = job.candidates(
        [Settings(method, shares, rank, 0.5 if density is None else density, seed) for method in chosen]
    )
    scored = job.scored(made, held_out) if held_out else {}
    best = scored.get("best", 0)
    files = job.write(made[best], target, {key: value for key, value in scored.items() if key != "best"})
    return {
        "files": [str(path) for path in files],
        "method": made[best].settings.method,
        "ranks": list(made[best].ranks),
        "parameters": made[best].parameters,
        **{key: value for key, value in scored.items() if key != "best"},
    }


def _shares(weights: str | None, count: int) -> tuple[tuple[float, ...], list[str]]:
    if weights is None:
        return (1.0 / count,) * count, []
    try:
        shares = tuple(float(word) for word in weights.split(","))
    except ValueError:
        return (), [f"--weights {weights}: must be numbers separated by commas, e.g. 0.7,0.3"]
    if len(shares) != count:
        return (), [f"--weights {weights}: {len(shares)} weights for {count} checkpoints"]
    if not abs(sum(shares)) > 1e-9 or not all(abs(share) < 1e6 for share in shares):
        return (), [f"--weights {weights}: their sum must be a number other than 0, which the mean is divided by"]
    return shares, []


def _methods(names: Sequence[str], evaluate: str | None) -> tuple[list[str], list[str]]:
    from lavis_peft.combine.methods import METHODS

    problems = [
        f"--method {name}: unknown{suggestion(name, METHODS)}; there are: {listing([*METHODS, 'all'])}"
        for name in names
        if name not in METHODS and name != "all"
    ]
    chosen = list(METHODS) if "all" in names else list(dict.fromkeys(names))
    if len(chosen) > 1 and evaluate is None and not problems:
        problems.append("--method: several methods need --evaluate YAML, to choose the best of them by")
    return chosen, problems


def _number_problems(rank: int | None, density: float | None, chosen: Sequence[str]) -> list[str]:
    from lavis_peft.combine.methods import NEED_DENSITY, TAKE_RANK

    problems = []
    for key, value, takers in (("--rank", rank, TAKE_RANK), ("--density", density, NEED_DENSITY)):
        if value is not None and (idle := [name for name in chosen if name not in takers]):
            problems.append(f"{key}: is not for {', '.join(idle)}; it is for {', '.join(takers)}")
    if rank is not None and rank < 1:
        problems.append(f"--rank {rank}: must be at least 1")
    if density is not None and not 0 < density <= 1:
        problems.append(f"--density {density}: must be above 0 and at most 1")
    return problems


def table(result: dict[str, Any]) -> str:
    """The candidates' scores as a Markdown table, best first within the combinations.

    Args:
        result: What `combine` returned with ``evaluate``.
    """
    rows = result["candidates"]
    kinds = [kind for kind in rows[0]["metrics"].get("accuracy_by_type", {}) if "/" not in kind]
    title = f"{result['split']}, {result['questions']:,} questions"
    lines = [
        f"| {title} | ranks | parameters | score |" + "".join(f" {kind} |" for kind in kinds),
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(kinds),
    ]
    for row in rows:
        by_type = row["metrics"].get("accuracy_by_type", {})
        low, high = row["ranks"]
        cells = [row["name"], str(low) if low == high else f"{low} to {high}", f"{row['parameters']:,}"]
        cells += [f"{row['score']:.2f}", *(f"{by_type[kind]:.2f}" for kind in kinds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if ranks[0] == ranks[1] else f"ranks {ranks[0]} to {ranks[1]}"
