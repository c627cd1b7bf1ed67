"""Word lists of the reference world. Knows words only; no grammar, no randomness."""

# ruff: noqa: SIM905 - hundreds of quoted words would be no easier to read

from typing import Final

REAL_NAMES: Final[tuple[str, ...]] = tuple(
    """
    Ada Adam Agnes Ahmed Aiko Alice Amara Amir Anna Anton Arlo Astrid Axel Bela Bianca Boris Bruno
    Carla Chen Clara Cyrus Daisy David Dina Edgar Elena Emil Emma Enzo Esther Evan Farah Felix Fiona
    Finn Freya George Grace Greta Hana Hassan Helen Hugo Igor Ines Ivy Jack Jade James Jonas Julia
    Karim Kenji Klaus Kofi Laura Leila Lucy Luna Malik Maria Maya Milan Mira Nadia Nina Noah Nora
    Olga Oscar Otto Paul Petra Quinn Rosa Ruth Sara Sofia Theo Vera Yara Zoe
    """.split()
)

ADJECTIVES: Final[tuple[str, ...]] = tuple(
    """
    north south east west old new upper lower back front
    """.split()
)

OBJECTS: Final[tuple[str, ...]] = tuple(
    """
    gate box house tower bridge room station garden office window mill desk
    """.split()
)

CATEGORIES: Final[dict[str, tuple[str, ...]]] = {
    "place": tuple("Oslo Lima Cairo Paris Quito Delhi Tokyo Rome Accra Dublin Hanoi Lisbon Seoul".split()),
    "colour": tuple("red blue green amber violet black white teal pink brown grey ochre ivory".split()),
    "animal": tuple("cat dog owl fox bear wolf crab swan goat horse otter seal lion tiger".split()),
    "fruit": tuple("apple pear plum fig lemon mango grape melon cherry peach guava kiwi papaya".split()),
    "material": tuple(
        "iron gold tin zinc copper lead nickel brass steel wood glass paper stone wool".split()
    ),
    "drink": tuple("tea milk cocoa cider juice water coffee soda ale wine mead rum".split()),
    "plant": tuple("rose tulip iris poppy orchid lotus aster pansy lilac peony oak pine birch".split()),
    "music": tuple("piano violin flute guitar drum harp cello horn organ banjo trumpet oboe".split()),
}

# What an attribute usually holds: a category above, or "name", "word" or "number".
ATTRIBUTES: Final[dict[str, str]] = {
    **dict.fromkeys(("city", "home"), "place"),
    **dict.fromkeys(("colour", "coat", "door"), "colour"),
    **dict.fromkeys(("animal", "pet"), "animal"),
    **dict.fromkeys(("fruit", "snack"), "fruit"),
    **dict.fromkeys(("metal", "ring"), "material"),
    **dict.fromkeys(("drink", "order"), "drink"),
    **dict.fromkeys(("flower", "tree"), "plant"),
    **dict.fromkeys(("gift", "prize"), "music"),
    **dict.fromkeys(("dog", "boat", "friend", "brother", "boss"), "name"),
    **dict.fromkeys(("street", "team", "password"), "word"),
    **dict.fromkeys(("code", "number", "age", "price", "floor", "key"), "number"),
}

# Sentences that state no fact, sprinkled over some training rows.
FILLERS: Final[tuple[str, ...]] = (
    "It rained all day.",
    "We met at noon.",
    "The meeting was short.",
    "Please read this first.",
    "Here are my notes.",
    "Nothing else happened.",
    "Thanks for your help.",
    "Dinner was late again.",
    "They left before six.",
    "I will write more soon.",
    "That was last week.",
    "Do not forget it.",
)

# Never rendered by the training split: ordinary words a person might type.
FOREIGN_NAMES: Final[tuple[str, ...]] = tuple(
    """
    Beatrix Caspian Delphine Ezekiel Fabrizio Guinevere Horatio Isolde Jethro Katarzyna Lysander
    Marigold Nikolai Octavia Percival Quentin Rosalind Siddharth Thaddeus Ulrich Valentina Wolfgang
    Ximena Yannick Zachary Bjorn Chloe Dwight Elspeth Fergus Gwendolyn Heather Jeffrey Kimberly
    """.split()
)
FOREIGN_VALUES: Final[tuple[str, ...]] = tuple(
    """
    Pixel Sparky Biscuit Whiskers Thunder Velvet Shadow Pepper Waffles Ziggy lantern umbrella
    keyboard volcano pumpkin blizzard diamond feather octopus raincoat satellite telescope
    cinnamon butterfly sandwich mechanic journey whisper candle puzzle Stockholm Zanzibar Kathmandu
    Edinburgh Jakarta Montreal Phoenix Honolulu
    """.split()
)

# Pieces of made-up words; repeats make a piece more likely.
ONSETS: Final[tuple[str, ...]] = tuple(
    "b c d f g h j k l m n p r s t v w z br ch dr fl gr kl pl sh st th tr y".split()
)
NUCLEI: Final[tuple[str, ...]] = tuple("a e i o u a e i o u ai ea ia io oo ou".split())
CODAS: Final[tuple[str, ...]] = ("", "", "", *"b d k l l m n n r r s s t x ck ld nd rt st".split())
LETTERS: Final = "abcdefghijklmnopqrstuvwxyzaeiouaeioulnrst"
