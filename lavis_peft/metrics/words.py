"""Captions as words: by the tokenizer of the COCO caption evaluation, which needs Java, or by a plain rule."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

_JAR = "stanford-corenlp-3.4.1.jar"
#: One sentence takes a fifth of a second; a JVM that hangs mustn't hold up a run for ever.
_TIMEOUT = 600

# t-shirt, 70s-style, and/or, 3,000, 2:30, p.m, o'clock
_WORD = r"(?:o')?[^\W_]+(?:(?:[-./&]|(?<=\d)[,:](?=\d))[^\W_]+)*"
_CLITIC = r"(?:n't|'(?:s|re|ve|ll|d|m))\b"
_TOKEN = re.compile(rf"{_WORD}(?={_CLITIC})|{_CLITIC}|{_WORD}|[%&$#]")


class TokenizerFailed(Exception):
    """Java or the tokenizer's library didn't do what was asked; says what happened."""


def plain_words(text: str) -> str:
    """Lower-case words separated by spaces, without punctuation.

    As by the Penn Treebank's rule, ``don't`` and ``dog's`` become ``do n't`` and ``dog 's``, and ``cannot`` two words.
    """
    text = text.lower().replace("’", "'").replace("cannot", "can not")
    return " ".join(_TOKEN.findall(text))


def penn_treebank_words(texts: Sequence[str], java: str) -> list[str]:
    """Lower-case words separated by spaces, without punctuation, as the COCO caption evaluation makes them.

    pycocoevalcap's own wrapper of the same library writes into its package folder and takes any number of lines back;
    here the texts go through a pipe, and are counted.

    Args:
        texts: Of any language and length; line breaks count as spaces.
        java: The program.

    Raises:
        TokenizerFailed: With what Java said.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    # split() knows more line breaks than \n, and so does the tokenizer.
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    # By name: Java's own choice follows the locale.
    options = ["-preserveLines", "-lowerCase", "-encoding", "utf-8"]
    command = [java, "-Dfile.encoding=UTF-8", "-cp", str(Path(ptbtokenizer.__file__).parent / _JAR)]
    try:
        done = subprocess.run(
            [*command, "edu.stanford.nlp.process.PTBTokenizer", *options],
            input=lines.encode(),
            capture_output=True,
            timeout=_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TokenizerFailed(str(error)) from error
    found = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(found) != len(texts):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise TokenizerFailed(f"exit code {done.returncode}, {len(found)} lines for {len(texts)} texts; {said[:1]}")
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in dropped) for line in found]
