"""Which language a text is in: its script, and for Latin script the small words that every sentence has.

Made for the mix of a dataset, not for single short texts: what cannot be told counts as `und` (undetermined).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter

_COMMON = {
    "en": "the and is of to in that it you for on with are this was have be not your we what can will from",
    "de": "der die und das ist nicht ein ich sie mit den zu auf für es eine dem wir wie auch sich haben werden kann",
    "fr": "le la les et est des une pour que dans vous nous pas avec sur qui je ce votre cette mais sont au du",
    "es": "el los las que una por para con está usted como pero más su del es y se lo son nuestro puede muy",
    "it": "il che di è una per non con sono della gli come più anche questo alla nel del lei si ha ma grazie",
    "pt": "o os uma para não com que você está por mais como mas seu sua dos das ao em é foi nós obrigado",
    "nl": "de het een en van niet dat met voor zijn op te is wij uw kan maar ook bij naar heeft deze worden",
    "pl": "i w nie na jest to się że do z jak dla są czy przez po oraz tego możesz proszę może już tylko",
    "sv": "och att det som en är inte på för med av den till har vi kan du jag ett om men din från",
    "da": "og at det er en til på ikke som med for af den har vi kan du jeg et om men din fra også",
    "tr": "ve bir bu için ile da de çok daha olarak değil ne gibi var sizin olan kadar ama her şey",
    "cs": "a je se na že v to s do jsem si jako pro ale není které byl jsou nebo by jste můžete",
    "ro": "și de la în este nu pe cu pentru care sunt mai să din un o ce dar ca vă poate acest",
    "id": "yang dan di untuk dengan ini itu tidak dari dalam ke akan anda pada adalah bisa saya atau juga",
    "vi": "và của là có không cho được trong một các với người này đã để những khi bạn tôi",
}
_VOTES: dict[str, tuple[str, ...]] = {}
for _code, _words in _COMMON.items():
    for _word in _words.split():
        _VOTES[_word] = (*_VOTES.get(_word, ()), _code)
_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
    ("uk", re.compile(r"[іїєґІЇЄҐ]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
)
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]")
_LOOKED_AT = 500


def detect(text: str) -> str:
    """ISO 639-1 code of the language of a text, or `und`."""
    text = text[:_LOOKED_AT]
    if not text.isascii():
        latin = len(_LATIN.findall(text))
        for code, letters in _SCRIPTS:
            if len(letters.findall(text)) * 3 > latin:
                return code
    # Punctuation hides a few words, never enough to matter, and splitting is many times faster than an expression.
    votes = Counter(itertools.chain.from_iterable(filter(None, map(_VOTES.get, text.lower().split()))))
    if not votes:
        return "und"
    (best, most), *others = votes.most_common(2)
    return "und" if most < 2 or (others and others[0][1] == most) else best
