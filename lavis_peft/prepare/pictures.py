"""Are all pictures there and whole?"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from lavis_peft.cores import available_cores
from lavis_peft.datasets.images import damage, whole_files_only


def damaged(source: Path, names: Iterable[str], decode: bool = True) -> dict[str, str]:
    """The pictures that can't be used, each with what is wrong with it.

    Args:
        source: What the names count from.
        names: The pictures' paths.
        decode: Whether to decode each; else it only has to be there.
    """
    every = list(dict.fromkeys(names))
    look = damage if decode else _absent
    # Threads, not processes: Pillow decodes outside Python's lock, and nothing has to be imported anew.
    pool = ThreadPoolExecutor(available_cores())
    try:
        with whole_files_only():
            states = pool.map(look, (str(source / name) for name in every))
            bar = tqdm(zip(every, states, strict=True), "pictures", len(every), unit="", disable=None, leave=False)
            return {name: state for name, state in bar if state}
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt doesn't wait for what is queued


def _absent(path: str) -> str:
    return "" if os.path.isfile(path) else "missing"
