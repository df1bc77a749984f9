"""Sentences to speak: drawn by a seed from word lists, all different."""

import random

ADJECTIVES = (
    "quiet yellow broken gentle heavy sudden ancient bright hollow careful frozen narrow loud "
    "purple distant cheerful rough silver hungry clever smooth wooden thirsty foggy orange"
).split()
NOUNS = (
    "river engine garden teacher window jacket valley oyster harbour thunder measure mirror "
    "bridge sheep vision pocket church village answer judge feather kitchen treasure lawyer "
    "mouse cloud thief shadow zebra machine"
).split()
VERBS = (
    "watches carries follows measures forgets changes catches touches paints throws chooses "
    "pushes washes questions borrows joins hides moves teaches shows"
).split()
PLACES = (
    "near the old mill|under a pale moon|beyond the northern hills|"
    "at half past eight|without any warning|for the usual reason|"
    "in the early morning|along the gravel road|by the cathedral|"
    "with both hands|after a long voyage|behind the green house"
).split("|")
PATTERNS = (
    "The {a} {n} {v} the {m} {place}.",
    "Why does the {n} think that the {m} {v} {place}?",
    "{place}, a {a} {n} {v} every {b} {m}.",
    "Her {n} never {v} the {a} {m}.",
    "Both the {a} {n} and the {b} {m} stay {place}.",
)


def sentences(count: int, seed: int) -> list[str]:
    """Return `count` different sentences, the same for the same seed."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        a, b = rng.sample(ADJECTIVES, 2)
        n, m = rng.sample(NOUNS, 2)
        words = {"a": a, "b": b, "n": n, "m": m, "v": rng.choice(VERBS)}
        text = rng.choice(PATTERNS).format(**words, place=rng.choice(PLACES))
        found[text[0].upper() + text[1:]] = None
    return list(found)
