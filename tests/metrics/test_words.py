import shutil
import sys

import pytest

from lavis_peft.metrics.words import TokenizerFailed, penn_treebank_words, plain_words

CAPTIONS = [
    ("Men in blue shirts are standing on a ladder .", "men in blue shirts are standing on a ladder"),
    ("Two young, White males are outside.", "two young white males are outside"),
    ("A child's pink dress; don't touch!", "a child 's pink dress do n't touch"),
    ('The dog can\'t jump -- "really"?', "the dog ca n't jump really"),
    ("Three t-shirts and 3,000 people, who cannot see", "three t-shirts and 3,000 people who can not see"),
    ("A black-and-white dog's ball...", "a black-and-white dog 's ball"),
    ("He is 6'2\" tall & strong", "he is 6 2 tall & strong"),
    ("a woman wearing a 70s-style outfit, at 2:30", "a woman wearing a 70s-style outfit at 2:30"),
    ("She'll be there; they've won. I'm ok. we'd go", "she 'll be there they 've won i 'm ok we 'd go"),
    ("café – naïve “quote” ‘x’ it’s", "café naïve quote x it 's"),
    ("a 7-eleven #1 sign\n$5 50% off and/or 1/2\u2028o'clock", "a 7-eleven # 1 sign $ 5 50 % off and/or 1/2 o'clock"),
    ("", ""),
]
TEXTS = [text for text, _ in CAPTIONS]


@pytest.mark.parametrize(("text", "expected"), CAPTIONS)
def test_plain_words(text, expected):
    assert plain_words(text) == expected


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no program java")


@needs_java
def test_plain_words_are_the_penn_treebanks_in_captions():
    pytest.importorskip("pycocoevalcap")
    assert penn_treebank_words(TEXTS, "java") == [plain_words(text) for text in TEXTS]


@needs_java
def test_the_words_are_those_of_pycocoevalcap(capfd):
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    texts = [*TEXTS[:-2], "A (left) dog's -LRB- U.S. Mr. Smith... 5'4", "rock 'n' roll; [x] {y}"]
    expected = tokenizer.tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    assert penn_treebank_words(texts, "java") == [expected[number][0] for number in range(len(texts))]


@pytest.mark.parametrize(
    ("program", "said"),
    [("/no/such/java", "No such file"), ("false", "exit code 1, 0 lines for 2 texts"), ("true", "0 lines for 2 texts")],
)
@pytest.mark.skipif(sys.platform == "win32", reason="programs of a Unix")
def test_a_java_that_fails(program, said):
    pytest.importorskip("pycocoevalcap")
    with pytest.raises(TokenizerFailed, match=said):
        penn_treebank_words(["a", "b"], program)
