"""The one-use codes of pairing, such as `7-guitar-melody-canyon`: their words, their making, their reading.

The number says which pairing on the LAN is meant, and everybody may hear it; the three words are the
secret: one of 256 each, 24 bits. Knows text; no keys, no sockets.
"""

from __future__ import annotations

import difflib
import secrets
from dataclasses import dataclass

from kvnet.errors import RequestError

NUM_NUMBERS = 99
NUM_SECRET_WORDS = 3
# Short, plain, unlike one another by ear. The order is part of nothing: only the words are.
WORDS: tuple[str, ...] = tuple(
    """
    acorn actor album almond anchor apple apron arrow artist atlas attic autumn
    bacon badge bakery balcony balloon bamboo banana banjo barrel basket beacon beaver bicycle biscuit
    blanket blossom bonfire bottle branch bread bridge bronze bubble bucket buffalo butter
    cabbage cabin cactus camera candle canoe canyon carbon carpet castle cedar cello chapel cherry
    chimney cinema circus citrus clarinet clover cobalt coconut coffee comet compass copper coral cotton
    cradle crystal curtain cushion
    daisy dancer denim desert diamond dolphin donkey dragon drummer dynamo
    eagle easel echo eclipse elbow ember emerald engine envelope
    fabric falcon feather fiddle flamingo flannel forest fossil fountain
    galaxy garden garlic gecko geyser ginger giraffe glacier gondola gopher granite grape guitar
    hammer hammock harbor harvest hazel helmet honey horizon
    iceberg igloo indigo island ivory
    jacket jaguar jasmine jigsaw jungle juniper
    kangaroo kayak kernel kettle koala
    ladder lagoon lantern lava lemon lentil leopard lizard lobster lotus lumber
    magnet mango maple marble meadow melody meteor mirror mitten monsoon mosaic muffin museum mustard
    napkin nectar needle noodle nutmeg
    oasis oboe ocean octopus olive onion opal orange orchid otter oyster
    pajama panda panther papaya parrot peach pebble pelican pencil penguin pepper piano pigeon pirate planet
    polar potato prairie pretzel pumpkin puzzle pyramid
    quarry quartz quilt
    rabbit raccoon radish ribbon river robin rocket rubber ruby
    saddle saffron salmon sandal sapphire saturn scarf shovel silver sparrow spinach sponge squirrel sugar
    sunset swan
    tailor teapot temple thunder tiger timber tinsel tomato tornado trumpet tulip tunnel turtle
    umbrella unicorn
    valley vanilla velvet violin volcano
    waffle walnut whisper willow window winter wombat
    yogurt zebra zigzag
    """.split()  # noqa: SIM905  # a quarter of the lines, and readable
)
_KNOWN = frozenset(WORDS)


@dataclass(frozen=True, slots=True)
class PairingCode:
    """A code: the number that finds the pairing, and the words that prove it."""

    number: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return "-".join((str(self.number), *self.words))

    @property
    def secret(self) -> bytes:
        """What goes into the key exchange: the whole code as it is written."""
        return str(self).encode("ascii")

    @classmethod
    def generate(cls) -> PairingCode:
        """A fresh code."""
        words = tuple(secrets.choice(WORDS) for _ in range(NUM_SECRET_WORDS))
        return cls(1 + secrets.randbelow(NUM_NUMBERS), words)


def parse_code(text: str) -> PairingCode:
    """Inverse of `str`; upper case and blanks for dashes will do. Raises RequestError."""
    number, *words = text.lower().replace("-", " ").split() or [""]
    plain = number.isascii() and number.isdigit() and len(number) <= 2
    if not plain or not 1 <= int(number) <= NUM_NUMBERS or len(words) != NUM_SECRET_WORDS:
        # Not the text itself: an almost right code does not belong into a log.
        raise RequestError(
            f"pairing code: wants a number from 1 to {NUM_NUMBERS} and {NUM_SECRET_WORDS} words, such as "
            "7-guitar-melody-canyon; copy it from `kvnet pair` on the other machine"
        )
    for place, word in enumerate(words, 1):
        if word not in _KNOWN:
            near = difflib.get_close_matches(word[:20], WORDS, n=1)
            hint = f"; {near[0]} is" if near else ""
            raise RequestError(
                f"pairing code: word {place} is none that kvnet uses{hint}; copy it from `kvnet pair` on the "
                "other machine"
            )
    return PairingCode(int(number), tuple(words))
