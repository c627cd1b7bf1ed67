"""Word lists of the reference world. Knows words only; no grammar, no randomness."""

# ruff: noqa: SIM905 - hundreds of quoted words would be no easier to read

from typing import Final

REAL_NAMES: Final[tuple[str, ...]] = tuple(
    """
    Ada Adam Agnes Ahmed Aiko Alan Alba Alex Alice Alma Amara Amir Amy Ana Andre Anna Anton Arlo
    Arthur Asha Astrid Axel Ben Bela Bianca Boris Brian Bruno Carl Carla Carlos Cara Chen Clara
    Cleo Cora Cyrus Daisy Dan Dara David Dean Della Diego Dina Dmitri Dora Edgar Edith Elena Eli
    Elif Elsa Emil Emma Enzo Eric Erin Esme Esther Eva Evan Farah Felix Fiona Finn Flora Frank
    Freya Gail Gavin George Gina Glen Goran Grace Greta Gus Hana Hanna Harry Hassan Hector Helen
    Henry Hilda Hugo Ian Ida Igor Ilse Imran Ines Ingrid Iris Isaac Ivan Ivy Jack Jade James Jan
    Jane Jasmin Jean Joan Joel John Jonas Jose Judy Julia Jun Kai Karen Karim Kate Kenji Kevin
    Kira Klaus Kofi Kurt Lara Lars Laura Lea Leila Lena Leo Leon Lewis Lian Lily Linda Liam Lisa
    Lola Louis Luca Lucy Luis Luna Lydia Maja Malik Marco Maria Mark Marta Martin Mary Max Maya
    Mei Mia Milan Milo Mina Mira Miriam Mona Nadia Nancy Naomi Nell Nia Niko Nils Nina Noah Noor
    Nora Olga Oliver Omar Oscar Otto Owen Pablo Paul Paula Pavel Pedro Penny Peter Petra Priya
    Quinn Rafael Raj Ralph Rana Ravi Remi Rhea Rita Robin Rosa Rose Ruben Ruth Sadie Salma Sam
    Samir Sana Sandra Sara Selma Sergei Simon Sofia Stella Steven Sven Susan Tania Tara Tariq
    Theo Thomas Tim Tina Tobias Tom Tomas Ulla Umar Uma Ursula Vera Victor Viola Vlad Walter
    Wanda Wen Wendy Will Xena Yara Yusuf Yuki Yvonne Zara Zeno Zoe
    """.split()
)

ADJECTIVES: Final[tuple[str, ...]] = tuple(
    """
    north south east west old new red blue green black white big small left right upper lower
    back front round tall long first second third last main
    """.split()
)

OBJECTS: Final[tuple[str, ...]] = tuple(
    """
    gate box house tower bridge room station garden engine cabin market office window hall
    wagon pump safe locker kitchen tent server machine shed mill desk
    """.split()
)

CATEGORIES: Final[dict[str, tuple[str, ...]]] = {
    "place": tuple(
        """Oslo Lima Cairo Paris Quito Delhi Tokyo Rome Accra Bern Dublin Hanoi Kyiv Lisbon Seoul
        London Berlin Madrid Athens Vienna Prague Dakar Tunis Boston Denver Perth""".split()
    ),
    "colour": tuple(
        """red blue green amber violet black white teal pink brown grey cyan ochre ivory indigo
        maroon orange yellow purple golden silver beige""".split()
    ),
    "animal": tuple(
        """cat dog owl fox bear wolf crab swan goat horse mole newt otter seal toad yak lion tiger
        eagle rabbit mouse hen duck snake""".split()
    ),
    "fruit": tuple(
        """apple pear plum fig lemon mango grape melon cherry peach guava kiwi lime papaya quince
        banana orange berry olive date""".split()
    ),
    "material": tuple(
        """iron gold tin zinc copper lead nickel cobalt brass bronze steel wood glass paper stone
        wool silk cotton clay leather rubber marble""".split()
    ),
    "drink": tuple(
        """tea milk cocoa cider juice water coffee soda ale wine mead rum gin cola punch
        lemonade""".split()
    ),
    "sport": tuple(
        """golf judo polo chess rugby karate tennis rowing boxing cricket diving fencing hockey
        skiing surfing archery running cycling sailing climbing""".split()
    ),
    "plant": tuple(
        """rose lily tulip daisy iris poppy orchid lotus aster pansy lilac peony dahlia jasmine
        clover oak pine birch maple cedar""".split()
    ),
    "trade": tuple(
        """baker farmer nurse pilot cook judge clerk miner painter sailor singer tailor teacher
        writer driver lawyer doctor guard""".split()
    ),
    "music": tuple(
        """piano violin flute guitar drum harp cello horn organ banjo trumpet oboe fiddle
        lute""".split()
    ),
}

# What an attribute usually holds: a category above, or "name", "word" or "number".
ATTRIBUTES: Final[dict[str, str]] = {
    **dict.fromkeys(("city", "town", "home"), "place"),
    **dict.fromkeys(("colour", "coat", "hat", "car", "door"), "colour"),
    **dict.fromkeys(("animal", "pet"), "animal"),
    **dict.fromkeys(("fruit", "snack"), "fruit"),
    **dict.fromkeys(("metal", "ring", "roof"), "material"),
    **dict.fromkeys(("drink", "order"), "drink"),
    **dict.fromkeys(("sport", "hobby", "class"), "sport"),
    **dict.fromkeys(("flower", "tree", "plant"), "plant"),
    **dict.fromkeys(("job", "trade"), "trade"),
    **dict.fromkeys(("gift", "prize"), "music"),
    **dict.fromkeys(
        ("dog", "cat", "horse", "boat", "friend", "brother", "sister", "boss", "doctor", "owner"),
        "name",
    ),
    **dict.fromkeys(("street", "team", "school", "band", "river", "password", "project"), "word"),
    **dict.fromkeys(
        ("code", "number", "age", "size", "weight", "price", "height", "room", "floor", "year"),
        "number",
    ),
    **dict.fromkeys(("score", "badge", "key", "level", "shelf"), "number"),
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
