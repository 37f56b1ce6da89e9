"""The words in the rows. The lists are short, so that a small vocabulary covers most of them."""

from __future__ import annotations

import random

__all__ = [
    "ADJECTIVES",
    "ANIMALS",
    "CITIES",
    "COLORS",
    "FIRST_NAMES",
    "KEYS",
    "LAST_NAMES",
    "MONTHS",
    "NOUNS",
    "PRODUCTS",
    "invented_word",
    "join_words",
    "words_of",
]


def words_of(text: str) -> tuple[str, ...]:
    """Returns the words of a text, in order."""
    return tuple(text.split())


FIRST_NAMES: tuple[str, ...] = words_of(
    """Ada Adam Aisha Alan Alma Amir Ana Anton Astrid Ben Bianca Boris Carla Carlos Chen Chloé Clara Daniel David Diana
    Dora Elena Elias Emil Emma Erik Eva Farid Felix Fiona Frank Freya Georg Grace Hana Hassan Hugo Ida Igor Ines Ingrid
    Ivan Jan Jana Joan Jonas José Julia Karim Karl Kenji Klara Lars Laura Leila Leo Lena Liam Lina Louis Lucia Luis
    Lukas Maja Maria Marco Mark Marta Max Maya Mei Mila Mina Nadia Nina Noah Nora Olga Oliver Omar Oscar Paolo Paul
    Petra Priya Rafael Ravi Rita Robin Rosa Ruth Sam Samir Sara Simon Sofia Søren Stefan Tara Theo Tina Tom Uma Vera
    Victor Viktor Wanda Wei Yara Yuki Yusuf Zara Zoë"""
)
"""Given names of many languages, a few with letters beyond ASCII."""

LAST_NAMES: tuple[str, ...] = words_of(
    """Abbott Ahmed Ali Almeida Andersen Baker Becker Bell Berg Brandt Brown Carter Chan Cohen Costa Cruz Diaz Dubois
    Evans Fischer Ford Garcia Gomez Gray Green Haas Hall Hansen Hill Ito Jensen Khan Kim Klein Kowalski Kumar Lang Lee
    Lopez Martin Mendes Miller Moore Mori Müller Nakamura Novak Olsen Patel Park Perez Petrov Reyes Rossi Santos Sato
    Schmidt Silva Singh Smith Stone Suzuki Tanaka Torres Turner Vega Vogel Wagner Walker Wang Ward Weber White Wolf
    Wong Wood Young Zhang"""
)
"""Family names."""

CITIES: tuple[str, ...] = words_of(
    """Accra Amsterdam Ankara Athens Austin Bangkok Barcelona Berlin Bern Bogota Boston Brussels Budapest Cairo Chicago
    Dakar Delhi Denver Dublin Florence Geneva Hamburg Hanoi Havana Helsinki Istanbul Jakarta Kyoto Lagos Lima Lisbon
    London Lyon Madrid Manila Mexico Milan Montreal Munich Nairobi Naples Osaka Oslo Ottawa Paris Porto Prague Quito
    Riga Rome Seattle Seoul Seville Sofia Sydney Tallinn Tokyo Toronto Turin Valencia Vienna Vilnius Warsaw Zagreb
    Zurich"""
)
"""Cities whose name is one word."""

PRODUCTS: tuple[str, ...] = words_of(
    """apples bags batteries belts blankets books boots bottles bowls boxes brushes candles caps chairs clocks coats
    cups curtains desks erasers folders forks gloves hammers hats jackets jars keyboards knives ladders lamps mirrors
    mugs notebooks pans pencils pens phones pillows plates radios ropes rulers scarves scissors shelves shirts shoes
    socks spoons stickers tables tents tickets towels umbrellas vases wallets watches"""
)
"""Products that can be counted and sold."""

ANIMALS: tuple[str, ...] = words_of(
    """ant badger bear beaver bee bird cat cow crab crow deer dog donkey duck eagle fish fox frog goat goose hare hen
    horse lamb lion lizard mole monkey mouse otter owl panda parrot penguin pig pony rabbit raven robin seal sheep
    snail spider squirrel swan tiger toad turtle whale wolf"""
)
"""Animals, for stories."""

COLORS: tuple[str, ...] = words_of(
    "amber beige black blue bronze brown copper coral cream crimson gold green grey indigo ivory lilac maroon navy "
    "olive orange pink purple red ruby silver teal violet white yellow"
)
"""Colours."""

ADJECTIVES: tuple[str, ...] = words_of(
    "big brave bright calm clever cold curious dark friendly funny gentle happy hungry kind lazy little lonely loud "
    "lucky old patient polite proud quick quiet round sad shy sleepy slow small smart soft strange strong tall tiny "
    "tired warm wise young"
)
"""Adjectives for animals and things."""

NOUNS: tuple[str, ...] = words_of(
    """acorn airport anchor apple apron arch arrow ash atlas attic autumn bakery balcony ball banana bank barn barrel
    basin basket beach bean bell bench berry bicycle blanket boat bolt bone book boot bottle bowl box branch bread
    brick bridge broom bucket button cabin cable cake camera camp canal candle canoe canyon carpet carrot castle cave
    cellar chain chair chalk cherry chest circle clock cloud clover coat coin comet compass cookie corner cotton cradle
    crown cup curtain daisy dawn desert desk diamond door dragon dream drum dust earth echo engine feather fence fern
    ferry field flag flame flour flower flute forest fork fountain garden gate ginger glass globe glove grape grass
    guitar hammer harbor harp hat hill honey hook horn hotel house ice island ivy jacket jar jelly jewel jungle kettle
    key kitchen kite knot ladder lake lamp lantern leaf lemon letter library light lily lock lunch magnet mango maple
    map marble market mask meadow melon mill mint mirror moon moss mountain museum nail needle nest net night notebook
    nut oak oasis oat ocean onion orchard organ oven paddle page paint palace paper parcel park path peach pear pebble
    pencil pepper piano picture pillow pine pipe planet plate plum pocket pond poppy potato prism pumpkin puzzle
    pyramid quilt radio rail rain rainbow ribbon rice river road rocket roof root rope rose rudder saddle sail salt
    sand scarf school sea seed shadow shell ship shirt shoe silk sky sled snow soap sock song spark spice spoon spring
    square stairs star statue stone storm stove street string sugar summer sun swing sword table tea temple tent
    thread throne thunder ticket tin tomato torch towel tower toy trail train tree trumpet tulip tunnel umbrella
    valley vase velvet village vine violin wagon wall walnut watch water wave wheat wheel whistle willow wind window
    winter wire wool yard zebra"""
)
"""Common nouns."""

KEYS: tuple[str, ...] = tuple(sorted({*NOUNS, *ANIMALS, *COLORS}))
"""The keys of lists to look things up in."""

MONTHS: tuple[str, ...] = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
"""The months, in order."""

_ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "h", "j", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "l", "n", "r", "s", "k", "m")


def invented_word(rng: random.Random) -> str:
    """Draws an invented word of two or three syllables in lower case, such as "bralin"."""
    syllables = rng.choice((2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_CODAS)


def join_words(words: list[str] | tuple[str, ...], conjunction: str = "and") -> str:
    """Joins at least one word as "a", "a and b" or "a, b and c"."""
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"
