"""What a failed check of the smoke set means for the users of an endpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    """What a failed check means for users. `avoidable`: another recipe does not have this problem."""

    text: str
    avoidable: bool = True


MEANINGS = {
    "lists its model": Meaning("clients that ask for the model by its name get 404", avoidable=False),
    "completes a chat": Meaning("the engine is up but does not serve; its log says why"),
    "writes meaningful text": Meaning(
        "the weights are read incorrectly: an FP4 kernel does not work on these cards, or a patch of the configuration "
        "matches nothing"
    ),
    "streams a chat": Meaning("chat programs show nothing until the answer is complete, or abort"),
    "separates its reasoning": Meaning("the answer contains thoughts: the reasoning parser does not fit the model"),
    "calls a tool": Meaning("agents fail at their first step: the tool parser does not fit the model"),
    "streams a tool call": Meaning(
        "OpenCode and other agents stream, and receive broken JSON; speculation causes that"
    ),
    "calls a required tool": Meaning("guided decoding does not work with this model"),
    "streams a required tool call": Meaning("guided decoding does not work with this model when streaming"),
    "calls tools step by step": Meaning(
        "single calls work and longer tasks fail: speculation together with prefix caching corrupts the state"
    ),
    "takes two system messages": Meaning("OpenCode sends two, and receives an error"),
    "reads a long prompt": Meaning("the beginning of a long prompt is lost, or the prompt is refused"),
    "sees an image": Meaning("images are refused or not understood", avoidable=False),
    "speculates": Meaning("the drafter costs time and saves none"),
}
