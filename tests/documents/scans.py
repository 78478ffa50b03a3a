"""Ten scanned pages in two languages whose text is known, made by `python -m tests.documents.scans FONT`.

The pages lie in `cases/scans`; FONT is a font with Chinese letters (WenQuanYi Zen Hei was used), the English pages are
set in DejaVu. Each is turned a little, blurred and has noise, as a scanner makes it; one lies on its side, one upside
down, one has two columns.
"""

import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SCANS = Path(__file__).parent / "cases" / "scans"
PIXELS_PER_INCH = 130
SIZE = (1075, 560)
LETTERS = 24

#: Name of the page, and its paragraphs.
PAGES: dict[str, tuple[str, ...]] = {
    "en-1": (
        "Harbour regulations of 1998",
        "Every boat that enters the harbour has to be registered at the office within 24 hours. The fee is 40 crowns "
        "a night for boats of up to ten metres, and 65 crowns for longer ones.",
        "The register is open to the public on Mondays and Thursdays between 9:30 and 15:00.",
    ),
    "en-2": (
        "Letter to the keeper of the lighthouse",
        "Dear Mr. Halvorsen, we have received your report of 12 March about the damaged lamp. A new lens (type B-7) "
        "was ordered from Gothenburg; it will arrive with the next mail boat.",
        "Please keep the old one, since the museum has asked for it. Yours sincerely, E. Lindqvist",
    ),
    "en-3": (
        "Bread for the crew",
        "Take 500 grams of rye flour, 300 grams of wheat flour, two spoons of salt and half a litre of warm water. "
        "Knead the dough for ten minutes and let it rest under a cloth until it has doubled.",
        "Bake it at 220 degrees for 45 minutes. It keeps for a week if it is wrapped in linen.",
    ),
    "en-4": (
        "Minutes of the meeting",
        "Present were the chairman, the treasurer and seven members. The accounts of the past year were approved "
        "without discussion. The proposal to rebuild the northern pier was postponed.",
        "Next meeting: 17 September, 19:00, at the old customs house.",
    ),
    "en-5": (
        "On the use of the foghorn",
        "In fog, the horn is sounded for three seconds every minute. It must not be sounded while the ferry is "
        "lying at the quay, because passengers were frightened in the past.",
        "The key is kept by the pilot on duty, who writes down every use. Whoever sounds the horn without need pays "
        "a fine of 20 crowns to the fund for the widows of fishermen.",
    ),
    "zh-1": (
        "港口管理规定",
        "所有进入港口的船只必须在二十四小时内到办公室登记。十米以下的船每晚收费四十元，更长的船收费六十五元。",
        "登记簿每星期一和星期四上午对公众开放，任何人都可以查阅。",
    ),
    "zh-2": (
        "给灯塔管理员的信",
        "我们已经收到您三月十二日关于灯泡损坏的报告。新的镜片已经订购，将随下一班邮船到达。",
        "请保留旧的镜片，因为博物馆希望收藏它。感谢您多年来的工作。",
    ),
    "zh-3": (
        "船员的面包",
        "准备五百克黑麦面粉、三百克小麦面粉、两勺盐和半升温水。把面团揉十分钟，盖上布，等它发到两倍大。",
        "用二百二十度的温度烤四十五分钟。用亚麻布包好，可以保存一个星期。",
    ),
    "zh-4": (
        "会议记录",
        "出席会议的有主席、财务主管和七名成员。去年的账目获得通过，没有讨论。重建北码头的建议被推迟。",
        "下次会议的时间是九月十七日晚上七点，地点在旧海关大楼。",
    ),
    "zh-5": (
        "向量数据库简介",
        "向量数据库是一种专门用于存储和检索高维向量的数据库系统。它广泛应用于语义搜索和推荐系统。",
        "每个文档被切成段落，每个段落变成一个向量，相似的内容在空间中彼此靠近。",
    ),
}
TURNED = {"en-4": 90, "zh-4": 180}
IN_COLUMNS = ("en-5",)


def page_text(name: str) -> str:
    """The text of a page, paragraph by paragraph."""
    return "\n".join(PAGES[name])


def _lines(paragraph: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    words = paragraph.split(" ") if " " in paragraph else list(paragraph)
    glue = " " if " " in paragraph else ""
    lines, line = [], ""
    for word in words:
        longer = f"{line}{glue}{word}" if line else word
        if font.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line]


def _clean(name: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    picture = Image.new("L", SIZE, 245)
    draw = ImageDraw.Draw(picture)
    columns = 2 if name in IN_COLUMNS else 1
    width = (SIZE[0] - 160 - 50 * (columns - 1)) / columns
    title, *paragraphs = PAGES[name]
    draw.text((80, 80), title, font=font, fill=30)
    x, y = 80.0, 160.0
    for number, paragraph in enumerate(paragraphs):
        if columns == 2 and number:
            x, y = 80 + width + 50, 160.0
        for line in _lines(paragraph, font, width):
            draw.text((x, y), line, font=font, fill=40)
            y += 1.6 * LETTERS
        y += LETTERS
    return picture


def scanned(name: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The page as a scanner makes it."""
    chance = random.Random(name)
    picture = _clean(name, font).rotate(chance.uniform(-1.2, 1.2), Image.Resampling.BICUBIC, fillcolor=245)
    picture = picture.filter(ImageFilter.GaussianBlur(0.7))
    noise = np.random.default_rng(chance.randrange(2**32)).normal(0, 7, (SIZE[1], SIZE[0]))
    picture = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    return picture.rotate(TURNED.get(name, 0), expand=True)


def main(chinese: str) -> None:
    """Make all pages."""
    import matplotlib

    latin = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf"
    for name in PAGES:
        font = ImageFont.truetype(str(latin) if name.startswith("en") else chinese, LETTERS)
        scanned(name, font).save(SCANS / f"{name}.jpg", quality=35, dpi=(PIXELS_PER_INCH, PIXELS_PER_INCH))


if __name__ == "__main__":
    main(sys.argv[1])
