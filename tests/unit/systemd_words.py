"""How systemd reads an Exec line, written from systemd.syntax(7) and systemd.service(5) for the tests alone.

Words and quotes with C escapes first, then `%` specifiers, then `$` variables (none is set here). What is run on a lab
host by tests/lab/two_rigs/test_unit_quoting.py shows that the real systemd agrees.
"""

ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
    "'": "'",
    "s": " ",
}


def exec_words(line: str) -> list[str]:
    """The arguments of the one command in `line`. Raises ValueError for what systemd would refuse or read as two."""
    return [_variables(_specifiers(word)) for word in _split(line)]


def _split(line: str) -> list[str]:
    words: list[str] = []
    position = 0
    while position < len(line):
        if line[position] in " \t\n\r":
            position += 1
            continue
        if line[position] == ";" and line[position + 1 : position + 2] in ("", " ", "\t"):
            raise ValueError("a second command begins")
        word, position = _word(line, position)
        words.append(word)
    return words


def _word(line: str, position: int) -> tuple[str, int]:
    word: list[str] = []
    quote = ""
    while position < len(line):
        char = line[position]
        if quote and char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        elif char == "\\":
            decoded, position = _escape(line, position + 1)
            word.append(decoded)
            continue
        elif not quote and char in " \t\n\r":
            break
        else:
            word.append(char)
        position += 1
    if quote:
        raise ValueError("a quote is open")
    return "".join(word), position


def _escape(line: str, position: int) -> tuple[str, int]:
    char = line[position : position + 1]
    if char == "x":
        return chr(int(line[position + 1 : position + 3], 16)), position + 3
    if char in ESCAPES and char:
        return ESCAPES[char], position + 1
    raise ValueError(f"unknown escape {char!r}")


def _specifiers(word: str) -> str:
    parts = word.split("%%")
    if any("%" in part for part in parts):
        raise ValueError("a specifier would be put in")
    return "%".join(parts)


def _variables(word: str) -> str:
    parts = word.split("$$")
    if any("$" in part for part in parts):
        raise ValueError("a variable would be put in")
    return "$".join(parts)
