"""From a benchmark's official download to annotation files for the plugin's datasets. LAVIS isn't imported here."""

from lavis_peft.prepare.benchmark import SPLITS, Benchmark
from lavis_peft.prepare.flickr30k import FLICKR30K
from lavis_peft.prepare.iconqa import ICONQA
from lavis_peft.prepare.run import prepare
from lavis_peft.prepare.scienceqa import SCIENCEQA
from lavis_peft.prepare.vizwiz import VIZWIZ

#: Every benchmark by its name on the command line.
BENCHMARKS: dict[str, Benchmark] = {found.name: found for found in (SCIENCEQA, ICONQA, VIZWIZ, FLICKR30K)}

__all__ = ["BENCHMARKS", "SPLITS", "Benchmark", "prepare"]
