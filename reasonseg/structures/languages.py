"""Whether a question is in a language that a model was not trained on, where that can be told.

By its letters, or by its function words; a question of one or two names is not judged.
"""

from __future__ import annotations

import re
import unicodedata

# first word of a letter's Unicode name -> the language or script
SCRIPTS = {
    "CYRILLIC": "Cyrillic", "GREEK": "Greek", "ARABIC": "Arabic", "HEBREW": "Hebrew",
    "DEVANAGARI": "Devanagari", "BENGALI": "Bengali", "TAMIL": "Tamil", "THAI": "Thai",
    "HANGUL": "Korean", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Chinese",
}  # fmt: skip
# function words that English does not have
WORDS = {
    "German": "der das den dem ist und wo welche welcher welches ein eine einen nicht zeige mir "
    "auf mit wer womit kann ich hier links rechts",
    "French": "le la les est où une des dans quel quelle sont du montre moi avec qui je peux sur",
    "Spanish": "el los las dónde donde está qué una unos muestra cuál del con puedo en",
    "Italian": "il lo gli dove è una uno quale della con che mostra posso nella",
    "Portuguese": "o os as onde está uma qual mostre com que posso na da",
    "Dutch": "de het waar is een welke niet met toon mij kan ik",
}
FOREIGN = {language: frozenset(words.split()) for language, words in WORDS.items()}
ENGLISH = frozenset(
    "the a an of in on to at is are what where which who that this these those there with and or "
    "for from all every find show me mark segment i it you can could would".split()
)
OWN = ENGLISH - frozenset().union(*FOREIGN.values())  # of English alone
MOST = 0.5  # of the letters: a share of another script above this decides
LEAST = 2  # function words of one other language


def foreign(text: str) -> str | None:
    """The language or script of a question that is surely not English; None for all else."""
    letters = [c for c in text if c.isalpha()]
    names = [SCRIPTS.get(unicodedata.name(c, "").split(" ")[0].split("-")[0]) for c in letters]
    scripts = [name for name in names if name]
    if letters and len(scripts) > MOST * len(letters):
        # Japanese is written with Chinese characters too
        return "Japanese" if "Japanese" in scripts else max(set(scripts), key=scripts.count)
    words = re.findall(r"[^\W\d_]+", text.lower())
    if any(word in OWN for word in words):
        return None
    found = {language: sum(word in mine for word in words) for language, mine in FOREIGN.items()}
    best = max(found, key=lambda language: found[language])
    return best if found[best] >= LEAST else None
