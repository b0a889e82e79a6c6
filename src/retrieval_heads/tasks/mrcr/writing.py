"""Requests and replies of a conversation, drawn by a seed: short texts of one form about one topic, none like another.

Wordings are our own. A reply is of 5 sentences; two of one form and topic share their shape and few of their words.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

FORMS: Final = ("poem", "riddle", "letter", "diary entry", "speech", "review", "short story", "news report")
_TOPICS_TEXT = """
    apples bees bells birds boats books bread bridges candles canals castles chess clocks clouds coffee comets
    coral deserts doors dragons drums dunes eggs ferries fog forests foxes gardens glaciers glass gold hats
    honey horses ice islands ivy kites ladders lakes lamps maps markets masks mills mirrors moss mountains
    museums music nets oceans onions orchards owls paint paper pianos rain rivers roads ropes salt sand shadows
    ships silk snow songs spiders stairs stars storms tea tents towers trains umbrellas valleys violins
    volcanoes walls whales wind windows winter wolves wool
"""
TOPICS: Final = tuple(_TOPICS_TEXT.split())
SENTENCES: Final = 5

_OPENINGS: Final = {
    "poem": "O {topic}, {adjective} and {other},",
    "riddle": "I speak of {topic}; who finds me {adjective} and {other}?",
    "letter": "Dear {person}, the {topic} you sent are {adjective} and {other}.",
    "diary entry": "Today I thought of {topic}, so {adjective}, so {other}.",
    "speech": "Friends, {topic} are what keep us {adjective} and {other}.",
    "review": "These {topic} are {adjective} where one hopes for {other}.",
    "short story": "Once {person} went looking for {topic} and found them {adjective} and {other}.",
    "news report": "{person} reports {topic}, {adjective} and {other}, near the {place}.",
}
_SENTENCES: Final = (
    "A {adjective} {thing} waits beside the {place}.",
    "{person} carries the {thing} over a {adjective} {place}.",
    "Nobody at the {place} remembers the {adjective} {thing}.",
    "The {thing} and the {other} {place} belong to {person}.",
    "Under the {place}, {person} hears a {adjective} {thing}.",
    "Every {thing} near the {place} turns {adjective} by night.",
    "It was {person} who left the {thing} at the {adjective} {place}.",
    "Between {place} and {thing} lies a {adjective} silence.",
)
_ADJECTIVES_TEXT = """
    bold brittle calm crooked dusty dim faint gentle hollow ruddy jagged keen lonely mellow narrow plain pale
    quiet restless silver tender shallow vast weary young zealous bitter copper distant dull frozen golden
    humble brass
"""
_ADJECTIVES: Final = tuple(_ADJECTIVES_TEXT.split())
_THINGS_TEXT = """
    anchor basket compass drawer engine feather goblet hammer inkwell jar kettle lantern medal needle oar pillow
    quill ribbon saddle thimble urn valise whistle yardstick anvil bucket coin dial envelope flute glove hinge
"""
_THINGS: Final = tuple(_THINGS_TEXT.split())
_PLACES_TEXT = """
    abbey bakery cellar dock embankment foundry granary harbour inn jetty kitchen library meadow nursery
    orangery pier quarry refinery station tavern upland vineyard wharf yard attic boathouse chapel dairy estuary
    fountain
"""
_PLACES: Final = tuple(_PLACES_TEXT.split())
_PEOPLE: Final = ("Ansel", "Bettina", "Caspar", "Dorte", "Egon", "Frieda", "Gregor", "Hedda", "Ignaz", "Jutta")
_LETTERS: Final = "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_PREFIX: Final = 10


@dataclass(frozen=True)
class Turn:
    """A request and the reply to it."""

    form: str
    topic: str
    reply: str

    @property
    def request(self) -> str:
        """What the user says."""
        return f"Write a {self.form} about {self.topic}."


def alike(seed: int, requests: int) -> list[Turn]:
    """Turns of one form and topic, whose replies differ."""
    draw = random.Random(f"retrieval-heads mrcr alike {seed}")
    form, topic = draw.choice(FORMS), draw.choice(TOPICS)
    replies: dict[str, None] = {}
    while len(replies) < requests:
        replies[_reply(draw, form, topic)] = None
    return [Turn(form, topic, reply) for reply in replies]


def others(seed: int) -> Iterator[Turn]:
    """Turns of other forms or topics without end: each form and topic once, then again with other replies."""
    draw = random.Random(f"retrieval-heads mrcr others {seed}")
    same = alike(seed, 1)[0]
    pairs = [(form, topic) for form in FORMS for topic in TOPICS if (form, topic) != (same.form, same.topic)]
    while True:
        draw.shuffle(pairs)
        for form, topic in pairs:
            yield Turn(form, topic, _reply(draw, form, topic))


def prefix(seed: int) -> str:
    """The letters that an answer must begin with."""
    draw = random.Random(f"retrieval-heads mrcr prefix {seed}")
    return "".join(draw.choice(_LETTERS) for _ in range(_PREFIX))


def ordinal(number: int) -> str:
    """Such as `2nd`."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


def _reply(draw: random.Random, form: str, topic: str) -> str:
    opening = _filled(draw, _OPENINGS[form], topic)
    shapes = draw.sample(_SENTENCES, SENTENCES - 1)
    between = "\n" if form == "poem" else " "
    return between.join([opening, *(_filled(draw, shape, topic) for shape in shapes)])


def _filled(draw: random.Random, shape: str, topic: str) -> str:
    adjective, other = draw.sample(_ADJECTIVES, 2)
    return shape.format(
        topic=topic,
        adjective=adjective,
        other=other,
        thing=draw.choice(_THINGS),
        place=draw.choice(_PLACES),
        person=draw.choice(_PEOPLE),
    )
