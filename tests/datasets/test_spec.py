import pytest

from lavis_peft.datasets.spec import Annotations, parse_easy_vqa, parse_instruct_json
from lavis_peft.errors import ConfigError


def section(**changes):
    base = {
        "data_type": "images",
        "type": "default",
        "prompt": "Question: {question} Short answer:",
        "target": "{answer}",
        "build_info": {"annotations": {"train": {"storage": "train.json"}}, "images": {"storage": "pictures"}},
        "vis_processor": {"train": {"name": "peft_image"}, "eval": {"name": "peft_image"}},
    }
    return {**base, **changes}


def problems(parse, given):
    with pytest.raises(ConfigError) as error:
        parse(given)
    return error.value.problems


def test_lavis_form_is_read():
    annotations = {
        "train": {"url": ["x", "y"], "storage": ["1.json", "2.json"], "md5": "abc"},
        "test": {"storage": "test.json"},
    }
    spec = parse_instruct_json(section(build_info={"annotations": annotations, "images": {"storage": "pictures"}}))
    assert spec.annotations["train"] == Annotations(("1.json", "2.json"), ("x", "y"))
    assert spec.annotations["test"] == Annotations(("test.json",))
    assert (spec.images, spec.seed, spec.shuffle_images, spec.cache_images) == ("pictures", 42, False, False)


def test_options_are_read():
    given = section(choices=["yes", "no"], max_samples={"train": 5}, shuffle_images=True, cache_images=True, seed=7)
    spec = parse_instruct_json(given)
    assert (spec.choices, spec.max_samples, spec.seed) == (("yes", "no"), {"train": 5}, 7)
    assert spec.shuffle_images and spec.cache_images
    assert (spec.option_separator, spec.train_answers) == (" ", "drawn")
    spec = parse_instruct_json(section(option_separator="\n", train_answers="each"))
    assert (spec.option_separator, spec.train_answers) == ("\n", "each")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promt": "x"}, "datasets.instruct_json.promt: unknown key (did you mean 'prompt'?)"),
        ({"prompt": "{questions}"}, "datasets.instruct_json.prompt: unknown field '{questions}'"),
        ({"prompt": None}, "datasets.instruct_json.prompt: missing"),
        ({"prompt": 3}, "datasets.instruct_json.prompt: expected a text, found 3"),
        ({"target": "fixed"}, "datasets.instruct_json.target: 'fixed' uses neither {answer} nor {letter}"),
        ({"choices": [True, False]}, "quote 'yes' and 'no': YAML reads them bare as true and false"),
        ({"choices": ["a", "a"]}, "datasets.instruct_json.choices: a choice is listed twice"),
        ({"max_samples": {"train": 0}}, "max_samples.train: expected a whole number of at least 1, found 0"),
        ({"max_samples": {"test": 3}}, "datasets.instruct_json.max_samples.test: unknown key; allowed: train"),
        ({"max_samples": 3}, "datasets.instruct_json.max_samples: expected a mapping, found 3"),
        ({"shuffle_images": "yes"}, "datasets.instruct_json.shuffle_images: expected true or false, found 'yes'"),
        ({"option_separator": 3}, "datasets.instruct_json.option_separator: expected a text, found 3"),
        ({"train_answers": "all"}, "train_answers: expected one of drawn, each, together, found 'all'"),
        ({"seed": -1}, "datasets.instruct_json.seed: expected a whole number of at least 0, found -1"),
        ({"build_info": {}}, "build_info.annotations: missing; give at least one of test, train, val"),
        ({"build_info": {"anotations": {}}}, "build_info.anotations: unknown key (did you mean 'annotations'?)"),
        (
            {"build_info": {"annotations": {"train": {"storage": "x"}, "valid": {"storage": "y"}}}},
            "build_info.annotations.valid: unknown key (did you mean 'val'?)",
        ),
        ({"build_info": {"annotations": {"train": {}}}}, "build_info.annotations.train.storage: missing"),
        (
            {"build_info": {"annotations": {"train": {"storage": 4}}}},
            "build_info.annotations.train.storage: expected a list of texts, found 4",
        ),
        (
            {"build_info": {"annotations": {"train": {"storage": "x"}}, "images": {"path": "y"}}},
            "build_info.images.path: unknown key; allowed: storage",
        ),
    ],
)
def test_mistakes_are_named(changes, message):
    found = problems(parse_instruct_json, section(**changes))
    assert len(found) == 1 or "anotations" in message
    assert message in "\n".join(found)


def test_all_mistakes_at_once():
    given = section(promt="x", target="{nothing}", seed="a", build_info={"annotations": {"trian": {}}})
    found = "\n".join(problems(parse_instruct_json, given))
    for name in ("promt", "target", "seed", "trian"):
        assert f"datasets.instruct_json.{name}" in found or f"annotations.{name}" in found


def easy(**changes):
    given = {key: value for key, value in section().items() if key != "build_info"}
    return {**given, **changes}


def test_easy_vqa_options():
    spec = parse_easy_vqa(easy(val_images=10, data_dir="/there", max_samples={"val": 3}))
    assert (spec.val_images, spec.data_dir, spec.max_samples) == (10, "/there", {"val": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"build_info": {}}, "datasets.easy_vqa.build_info: unknown key"),
        ({"val_images": -2}, "datasets.easy_vqa.val_images: expected a whole number of at least 0, found -2"),
        ({"max_samples": {"val": 3}}, "datasets.easy_vqa.max_samples.val: unknown key"),
    ],
)
def test_easy_vqa_mistakes(changes, message):
    assert message in "\n".join(problems(parse_easy_vqa, easy(**changes)))
