"""Texts for the encoder tests: every length from one word to beyond the limit, several scripts, emoji."""

import random

_SENTENCES = {
    "en": "the tide gauge at the northern landing was cleaned and recalibrated before a storm reached harbour",
    "de": "der Pegel am nördlichen Anleger wurde vor dem Sturm gereinigt und überprüft größer als gewöhnlich",
    "fr": "le marégraphe à l'embarcadère a été nettoyé et réétalonné avant l'arrivée de la tempête déjà",
    "ru": "мареограф у северного причала был очищен и откалиброван до прихода шторма в гавань",
    "zh": "北 岸 码头 的 潮位计 在 风暴 到来 之前 已经 清洗 并 重新 校准",
    "ar": "تم تنظيف مقياس المد عند الرصيف الشمالي قبل وصول العاصفة",
    "emoji": "😀 🚢 🌊 👩‍🔬 🇫🇷 e\u0301 ﬁn ½ naïve <pad> [SEP] http://example.org/a?b=1 42.5% don't",
}

WORDS = {language: sentence.split() for language, sentence in _SENTENCES.items()}

#: Edge cases that a tokenizer may treat in its own way.
ODD = [
    *("", " ", "\n\t", "a", "。", "😀", "e\u0301e\u0301", "\u200b", "x" * 600, "[CLS] <s> </s> [MASK]", "🇫🇷👩‍🔬"),
    "北岸码头的潮位计在风暴到来之前已经清洗。" * 35,
]


#: Tokens of a batch of MiniLM's in sentence-transformers, which fills every text of it up to the longest one.
SMALL_BATCH = 1024


def passages(count: int, longest: int = 400, seed: int = 7) -> list[str]:
    """`count` texts of 1 to `longest` words, each in one language with some words of another."""
    chosen = random.Random(seed)
    languages = sorted(WORDS)
    texts = []
    for position in range(count):
        words = WORDS[languages[position % len(languages)]]
        others = WORDS[chosen.choice(languages)]
        length = 1 + int((longest - 1) * chosen.random() ** 3)
        separator = "" if words is WORDS["zh"] else " "
        texts.append(separator.join(chosen.choice(words if chosen.random() < 0.8 else others) for _ in range(length)))
    return texts
