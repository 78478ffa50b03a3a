"""The check that an engine reproduces a model: its vectors on a sample of texts against sentence-transformers' float32.

Called when a model is exported, and again on a machine with another CPU.
"""

from dataclasses import dataclass

from vectorize_pipelines.encoders.base import Vectors

#: What every engine is held to.
MEAN_COSINE = 0.9999
WORST_COSINE = 0.999

#: Cosine does not see lengths, which count for models whose vectors are not normalised.
WORST_NORM_ERROR = 0.01

#: Longest sample text in words; together with truncation it reaches every length that models usually take.
LONGEST_SAMPLE = 2048

_SENTENCES = (
    "The ferry to the northern islands leaves at a quarter past six, weather permitting, from the second pier.",
    "Die Ergebnisse der Messungen weichen um weniger als zwei Prozent von den berechneten Werten ab.",
    "Le conseil municipal a voté à l'unanimité la rénovation de l'ancienne bibliothèque du quartier.",
    "El contrato entrará en vigor el primer día del mes siguiente a la fecha de la última firma.",
    "Участники экспедиции обнаружили неизвестный ранее вид мха на высоте трёх тысяч метров.",
    "这家医院去年引进了新的影像设备，检查时间从四十分钟缩短到了不到十分钟。",
    "この地方では昔から、春になると川沿いの桜並木の下で祭りが開かれてきました。",
    "أعلنت الشركة عن نتائجها المالية للربع الثالث، وجاءت أفضل من توقعات المحللين.",
    "मौसम विभाग ने अगले तीन दिनों में तटीय इलाकों में भारी बारिश की चेतावनी दी है।",
    "배송이 지연되면 고객 센터에서 문자 메시지로 새로운 도착 예정일을 알려 드립니다.",
    "Great service!! 😀👍🏽 Will come again 🎉 — 5/5 ⭐⭐⭐⭐⭐ naïve café e\u0301tude 👩‍🔬 ½ ﬁne",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)  # O(n), x_{i+1} ≠ x_i",
)


@dataclass(frozen=True, slots=True)
class Agreement:
    """The nearness of vectors to the reference.

    mean_cosine, worst_cosine  over the texts
    worst_norm_error           largest relative difference of a vector's length
    """

    mean_cosine: float
    worst_cosine: float
    worst_norm_error: float

    @property
    def equal(self) -> bool:
        """True where the two count as the same model."""
        return (
            self.mean_cosine >= MEAN_COSINE
            and self.worst_cosine >= WORST_COSINE
            and self.worst_norm_error <= WORST_NORM_ERROR
        )

    def __str__(self) -> str:
        norms = "" if self.worst_norm_error <= WORST_NORM_ERROR else f", norms off by {self.worst_norm_error:.1%}"
        return f"mean cosine {self.mean_cosine:.6f}, worst {self.worst_cosine:.6f}{norms}"


def sample_texts(max_length: int | None) -> list[str]:
    """Return texts of one word to more than the model takes, in a dozen scripts and styles, two of each length."""
    longest = min(max_length or LONGEST_SAMPLE, LONGEST_SAMPLE)
    lengths = [words for words in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233) if words < longest]
    varied = [_words(first + shift, length) for first, length in enumerate(lengths) for shift in (0, 5)]
    return ["", "x", *varied, _words(0, longest)]


def compare(vectors: Vectors, reference: Vectors) -> Agreement:
    """Return cosine similarity and length of each row, in float64. A row that is not finite agrees with nothing."""
    import numpy as np

    ours, theirs = vectors.astype(np.float64), reference.astype(np.float64)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return Agreement(-1.0, -1.0, float("inf"))
    norms, expected = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / np.maximum(norms * expected, np.finfo(np.float64).tiny)
    errors = np.abs(norms - expected) / np.maximum(expected, np.finfo(np.float64).tiny)
    return Agreement(float(cosines.mean()), float(cosines.min()), float(errors.max()))


def _words(first: int, count: int) -> str:
    """Return `count` words from one sentence onwards; characters count as words where the script has no spaces."""
    words: list[str] = []
    while len(words) < count:
        sentence = _SENTENCES[first % len(_SENTENCES)]
        words.extend([f"{word} " for word in sentence.split()] if sentence.count(" ") > 2 else sentence)
        first += 1
    return "".join(words[:count])
