import json
import subprocess
import sys

import pytest

from lavis_peft.errors import DataError
from lavis_peft.tasks.results import complete, gather, metrics, same_text, write_json


def rows(*ids, correct=True, kind=""):
    return [{"question_id": str(identity), "correct": correct, "question_type": kind} for identity in ids]


def ids(found):
    return [row["question_id"] for row in found]


def test_one_process_keeps_its_rows():
    assert gather(rows(1, 2)) == [rows(1, 2)]


def test_rows_come_in_the_splits_order():
    assert ids(complete([rows(2, 0, 1)], ["0", "1", "2"], "test")) == ["0", "1", "2"]


def test_padding_of_distributed_samplers_is_removed():
    # 7 questions dealt to 4 processes: the last round is padded with question 0, then 1 and so on.
    shares = [rows(0, 4), rows(1, 5), rows(2, 6), [*rows(3), *rows(0, correct=False)]]
    found = complete(shares, [str(number) for number in range(7)], "test")
    assert ids(found) == [str(number) for number in range(7)]
    assert all(row["correct"] for row in found), "the padding's answer came instead of the question's own"


def test_every_process_may_answer_every_question():
    """As with run.use_dist_eval_sampler: false."""
    found = complete([rows(0, 1), rows(0, 1, correct=False)], ["0", "1"], "test")
    assert ids(found) == ["0", "1"]
    assert all(row["correct"] for row in found)


def test_one_process_never_answers_a_question_twice():
    with pytest.raises(DataError, match="split test: 1 questions were answered more than once"):
        complete([rows(0, 0), rows(1)], ["0", "1"], "test")


def test_missing_and_foreign_answers():
    with pytest.raises(DataError) as error:
        complete([rows(0, 9)], ["0", "1", "2"], "val")
    text = str(error.value)
    assert "split val: 2 of 3 questions were not answered (1, 2)" in text and "1 answers belong to no question" in text


def test_a_hundred_thousand_rows_take_no_time():
    every = [str(number) for number in range(100_000)]
    assert len(complete([rows(*every[::2]), rows(*every[1::2])], every, "test")) == 100_000


def test_accuracy_by_type_counts_each_level():
    found = metrics(
        [
            *rows(1, 2, kind="yes_no/plain"),
            *rows(3, 4, correct=False, kind="yes_no/negated"),
            *rows(5, kind="color"),
            *rows(6, correct=False),
        ]
    )
    assert found == {
        "agg_metrics": 50.0,
        "accuracy": 50.0,
        "accuracy_by_type": {"color": 100.0, "yes_no": 50.0, "yes_no/negated": 0.0, "yes_no/plain": 100.0},
        "total": 6,
    }


def test_accuracy_by_group_counts_every_label():
    found = metrics(
        [
            {"correct": True, "groups": {"modality": ["text", "image"], "grade": ("1-6",)}},
            {"correct": False, "groups": {"modality": ["image"], "grade": ["7-12"]}},
            {"correct": False, "groups": {"modality": []}},
            {"correct": True},
        ]
    )
    assert found["accuracy_by_group"] == {
        "grade": {"1-6": 100.0, "7-12": 0.0},
        "modality": {"image": 50.0, "text": 100.0},
    }
    assert found["accuracy"] == 50.0 and found["accuracy_by_type"] == {}


def test_answers_may_be_partly_right():
    rows = [{"share": 0.3, "question_type": "a"}, {"share": 1.0, "question_type": "a", "groups": {"x": ["y"]}}]
    found = metrics(rows, "share")
    assert found["accuracy"] == found["accuracy_by_type"]["a"] == pytest.approx(65)
    assert found["accuracy_by_group"] == {"x": {"y": 100.0}}


def test_no_rows_no_accuracy():
    assert metrics([]) == {"agg_metrics": 0.0, "accuracy": 0.0, "accuracy_by_type": {}, "total": 0}


def test_generated_texts_are_compared_plainly():
    assert same_text(" Yes. ", ["no", "yes"]) and not same_text("yes it is", ["yes"])


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "result" / "test_0.json"
    write_json(path, [{"prediction": "grün"}])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert json.loads(path.read_text(encoding="utf-8")) == [{"prediction": "grün"}]
    assert [entry.name for entry in path.parent.iterdir()] == ["test_0.json"]


_TWO_PROCESSES = """
import sys
import torch.distributed as dist
from lavis_peft.errors import DataError
from lavis_peft.runners.settling import settle_at_exit
from lavis_peft.tasks.results import complete, gather, on_main
rank = int(sys.argv[1])
settle_at_exit()
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], world_size=2, rank=rank)
own = [{"question_id": str(number), "correct": True} for number in ((0, 2), (1, 0))[rank]]
found = complete(gather(own), ["0", "1", "2"], "test")
worked = on_main(lambda: {"by": rank})
def fail():
    raise ValueError(f"no disk at {rank}")
try:
    on_main(fail)
except (ValueError, DataError) as error:
    print([row["question_id"] for row in found], worked, f"{type(error).__name__}: {error}")
dist.destroy_process_group()
"""


def test_two_processes_see_the_same_rows(tmp_path):
    command = [sys.executable, "-c", _TWO_PROCESSES]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0].strip() for process in started]
    same = "['0', '1', '2'] {'by': 0} "
    assert outputs == [f"{same}ValueError: no disk at 0", f"{same}DataError: on the main process: no disk at 0"]
