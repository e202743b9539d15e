import pytest

from lavis_peft.datasets.records import Record
from lavis_peft.datasets.selection import carve, shuffle_images, subset
from lavis_peft.errors import ConfigError


def records(n, per_image=3):
    return [Record(f"/{i // per_image}.png", f"{i // per_image}", "q", ("x",), (), str(i), "p") for i in range(n)]


def test_subset_is_seeded_and_keeps_the_order():
    every = records(100)
    few = subset(every, 10, seed=1)
    assert len(few) == 10 and few == sorted(few, key=lambda r: int(r.question_id))
    assert few == subset(every, 10, seed=1) and few != subset(every, 10, seed=2)
    assert subset(every, None, 1) == every and subset(every, 1000, 1) == every


def test_carve_sets_whole_pictures_apart():
    rest, apart = carve(records(30), 4, seed=0, where="w")
    assert len({r.image for r in apart}) == 4 and len(apart) == 12 and len(rest) == 18
    assert not {r.image for r in apart} & {r.image for r in rest}
    assert (rest, apart) == carve(records(30), 4, seed=0, where="w")
    assert apart != carve(records(30), 4, seed=1, where="w")[1]


def test_carve_must_leave_something():
    with pytest.raises(ConfigError, match="w: 10 asked for, but the split has 10 pictures"):
        carve(records(30), 10, seed=0, where="w")


@pytest.mark.parametrize("n_images", [2, 3, 17])
def test_no_question_keeps_its_picture(n_images):
    every = records(3 * n_images)
    shuffled = shuffle_images(every, seed=5, where="w")
    assert [r.question_id for r in shuffled] == [r.question_id for r in every]
    assert all(new.image != old.image for new, old in zip(shuffled, every, strict=True))
    assert all(r.image == f"/{r.image_id}.png" for r in shuffled)
    assert {r.image for r in shuffled} == {r.image for r in every}
    assert shuffled == shuffle_images(every, seed=5, where="w")


def test_one_picture_cannot_be_shuffled():
    with pytest.raises(ConfigError, match="at least two different pictures"):
        shuffle_images(records(3), seed=0, where="w")
